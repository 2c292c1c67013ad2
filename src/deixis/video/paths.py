"""What is said of a path at which no film lies."""

from __future__ import annotations

import re
from pathlib import Path


def is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long, or a folder that may not be read
        return False


def is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def no_such(path: str) -> str:
    """What to say of a path at which nothing lies: what it is, if it is none of this machine's files."""
    name = Path(path).name
    if re.match(r"[A-Za-z][A-Za-z0-9+.\-]*:/", path):
        scheme, _, rest = path.partition(":")
        if scheme.lower() == "file":
            return f"films are given by their path, not as a URL: {'/' + rest.lstrip('/')}"
        return f"{scheme}://{rest.lstrip('/')} is a URL; films are read from disk: download it first"
    if re.match(r"(www\.[\w.-]+|[\w-]+(\.[\w-]+)*\.(com|org|net|be|tv|io|de|fr|uk|cn|jp))/", path, re.IGNORECASE):
        return f"{path} looks like a URL; films are read from disk: download it first"
    if path.startswith("~"):
        return f"no such file or folder: {path}; in quotes a shell leaves ~ as it is: write the whole path"
    if path == "-":
        return "a film is read twice, so it cannot come through a pipe; save it to a file and give that"
    if path.isdecimal() or re.fullmatch(r"(/dev/)?video\d+", path):
        return f"no such file or folder: {path}; cameras are not read: record a film first, and give that"
    if re.search(r"%0?\d*d", name) or any(sign in name for sign in "*?["):
        return f"no such file or folder: {path}; a folder of frames is given by its own name: {Path(path).parent}"
    return f"no such file or folder: {path}{_alike(Path(path))}"


def _alike(path: Path) -> str:
    """The file beside it that was meant, perhaps: another case, or without its suffix."""
    try:
        beside = sorted(p.name for p in path.parent.iterdir())
    except OSError:
        return ""
    same = [name for name in beside if name.casefold() == path.name.casefold() and name != path.name]
    longer = [name for name in beside if Path(name).stem == path.name and Path(name).suffix]
    found = same or longer
    return f"; {path.parent / found[0]} is there" if found else ""
