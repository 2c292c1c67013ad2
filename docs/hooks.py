"""Hooks of mkdocs and of mkdocstrings.

Files outside docs/ that a page links to (the model card, examples) become part of the site: pages keep the relative
links that work in a clone, and in the site such a file lies below ``repository/``. An ``Example`` of a docstring is
code, as ``Examples`` is.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=[)#])")


def linked_files(page: Path) -> list[Path]:
    """Files of the clone that a page links to."""
    targets = LINK.findall(page.read_text(encoding="utf-8")) if page.suffix == ".md" else []
    paths = [(page.parent / target).resolve() for target in targets if "://" not in target]
    return [path for path in paths if path.is_file() and path.is_relative_to(ROOT)]


def site_path(path: Path) -> str:
    """Where a file of the clone lies in the site."""
    return str(path.relative_to(DOCS) if path.is_relative_to(DOCS) else "repository" / path.relative_to(ROOT))


def on_files(files: Files, config: Any) -> Files:
    """Add the files outside docs/ that pages link to, and those that these link to."""
    queue = [Path(file.abs_src_path) for file in files.documentation_pages() if file.abs_src_path]
    known = set(queue)
    while queue:
        for path in linked_files(queue.pop()):
            if path not in known and not path.is_relative_to(DOCS):
                known.add(path)
                queue.append(path)
                files.append(File.generated(config, site_path(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links to files outside docs/, and links of such files, at their places in the site."""
    source = Path(page.file.abs_src_path)
    here = os.path.dirname(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        path = (source.parent / match[0]).resolve()
        is_file = "://" not in match[0] and path.is_file() and path.is_relative_to(ROOT)
        return os.path.relpath(site_path(path), here or ".") if is_file else match[0]

    return LINK.sub(moved, markdown)


class ExampleIsCode(griffe.Extension):
    """griffe parses ``Examples:``; ``Example:`` would be prose."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
