"""Where a batch reads and writes: paths of this machine, or URLs that fsspec reads (s3://bucket/film.mp4)."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from deixis import weights
from deixis.locks import lock, unlock
from deixis.out_folder import of_system
from deixis.types import DeixisError, reason_of
from deixis.video import PICTURES
from deixis.writers.output import Output

RESULTS, RESULT = "results.jsonl", "result.json"  # of a batch; of a film
LET_GO = 3.0  # seconds that what was killed may take to let go of OUT (our choice)
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+(://|::)")


def file_system(place: str) -> tuple[Any, str]:
    """(fsspec's file system, the path in it) of a path or URL. Raises DeixisError where nothing here can reach it."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(place)
    except (ImportError, ValueError) as error:
        raise DeixisError(f"{place} cannot be reached: {error}") from error


@contextmanager
def fetched(place: str) -> Iterator[Path]:
    """A place on this disk: itself, or a copy of what lies at a URL (of a folder, its pictures) for a while."""
    if not URL.match(place):
        yield Path(place)
        return
    with tempfile.TemporaryDirectory(prefix="deixis-") as folder:
        try:
            system, path = file_system(place)
            copy = Path(folder) / _name(path)
            if not system.isfile(path) and system.isdir(path):
                copy.mkdir()
                for found in system.ls(path, detail=False):
                    if PurePosixPath(found).suffix.lower() in PICTURES:
                        system.get_file(found, str(copy / _name(found)))
            else:
                system.get_file(path, str(copy))
        except FileNotFoundError as error:
            raise DeixisError(f"no such file or folder: {place}") from error
        except Exception as error:  # every file system has errors of its own
            if isinstance(error, DeixisError):
                raise
            raise DeixisError(f"{place} cannot be read: {type(error).__name__}: {error}") from error
        yield copy


def _name(path: str) -> str:
    name = PurePosixPath(path.rstrip("/")).name
    if name in ("", ".", ".."):
        raise DeixisError(f"{path} names no file")
    return name


def fingerprint(path: Path) -> str:
    """sha256 of a film's bytes; of a folder, of its pictures' names and bytes."""
    if not path.is_dir():
        return weights.sha256(path)
    whole = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.suffix.lower() in PICTURES and file.is_file():
            whole.update(json.dumps([file.name, weights.sha256(file)]).encode())
    return whole.hexdigest()


class Store:
    """OUT: a folder of this machine, or a place in a bucket. ``local`` is None for a URL, also for file://."""

    def __init__(self, out: str) -> None:
        self.local = None if URL.match(out) else Path(out).absolute()
        self.fs, self.root = file_system(out if self.local is None else str(self.local))
        self.root = self.root.rstrip("/")

    def names(self) -> list[str]:
        """Of what lies in OUT. Raises DeixisError where it cannot be reached: the first call on a store."""
        self.fs.invalidate_cache()
        try:
            return sorted(PurePosixPath(path).name for path in self.fs.ls(self.root, detail=False))
        except FileNotFoundError:
            return []
        except Exception as error:  # every file system has errors of its own, for missing credentials say
            raise DeixisError(f"{self.root} cannot be reached: {type(error).__name__}: {error}") from error

    def read(self, name: str) -> bytes | None:
        try:
            return self.fs.cat_file(f"{self.root}/{name}")
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """In one step, where the place allows it (a bucket does by itself)."""
        if "file" not in self.fs.protocol:
            self.fs.pipe_file(f"{self.root}/{name}", data)
            return
        path = Path(f"{self.root}/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_name(path.name + ".half")
        half.write_bytes(data)
        os.replace(half, path)

    def remove(self, name: str) -> None:
        """A file or folder, if it is there; a folder's result.json goes first."""
        for path, recursive in ((f"{self.root}/{name}/{RESULT}", False), (f"{self.root}/{name}", True)):
            with suppress(FileNotFoundError, NotADirectoryError):
                self.fs.rm(path, recursive=recursive)

    def sizes(self, name: str) -> dict[str, int]:
        """Bytes of everything in a folder of OUT; a folder there counts as one."""
        self.fs.invalidate_cache()
        found: dict[str, int] = {}
        for path, about in self.fs.find(f"{self.root}/{name}", detail=True).items():
            part = path[len(f"{self.root}/{name}/") :].partition("/")[0]
            found[part] = found.get(part, 0) + int(about["size"])
        return found

    @contextmanager
    def making(self, name: str) -> Iterator[Output]:
        """A folder of OUT while it is made; it comes to OUT when it is whole, the item finished last coming last."""
        if self.local is not None:
            with Output(self.local / name) as output:
                yield output
            return
        with tempfile.TemporaryDirectory(prefix="deixis-") as folder:
            with Output(Path(folder) / name) as output:
                yield output
            for path in output.paths:
                for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                    if file.is_file():
                        target = f"{self.root}/{name}/{file.relative_to(output.out).as_posix()}"
                        self.fs.makedirs(target.rpartition("/")[0], exist_ok=True)
                        self.fs.put_file(str(file), target)


@contextmanager
def claimed(store: Store) -> Iterator[None]:
    """OUT for one batch at a time; what holds other things is refused, and what stays empty is removed again."""
    made: list[Path] = []
    handle: int | None = None
    try:
        if store.local is not None:
            if store.local.exists() and not store.local.is_dir():
                raise DeixisError(f"{store.local} is a file; give a folder with -o")
            made = [p for p in (store.local, *store.local.parents) if not p.exists()]
            store.local.mkdir(parents=True, exist_ok=True)
            handle = _lock(store.local)
        names = _held(store)
        if names and RESULTS not in names:
            raise DeixisError(f"{store.root} is not empty and no batch of deixis; give another folder with -o")
        if RESULTS not in names:
            store.write(RESULTS, b"")
        try:
            yield
        finally:
            if _held(store) == [RESULTS] and not store.read(RESULTS):
                store.remove(RESULTS)
    except OSError as error:
        raise DeixisError(f"cannot write to {store.root}: {reason_of(error)}") from error
    finally:
        unlock(handle)
        with suppress(OSError):  # the first that is not empty
            for folder in made:
                folder.rmdir()


def _held(store: Store) -> list[str]:
    """Names of what lies in OUT, without what disks put there and what a batch leaves that is killed at its start."""
    return [n for n in store.names() if not (n.startswith(".") or of_system(n) or n == f"{RESULTS}.half")]


def _lock(folder: Path) -> int | None:
    """A lock on a folder that ends with this process and those forked from it; None where the disk has none.

    Raises DeixisError where another batch holds it, and goes on holding it: what was killed a moment ago may not be
    gone yet.
    """
    patience = time.monotonic() + LET_GO
    while True:
        try:
            return lock(folder)
        except BlockingIOError as error:
            if time.monotonic() > patience:
                raise DeixisError(
                    f"another batch is writing to {folder}; wait for it, or give another folder"
                ) from error
        time.sleep(0.02)
