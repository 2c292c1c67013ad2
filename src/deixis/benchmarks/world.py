"""A generated world on disk (`deixis world`), in MeViS's layout: any folder with an expression file is a split."""

from __future__ import annotations

from pathlib import Path

from deixis.benchmarks.mevis_layout import SPLITS, open_layout, write_fixture
from deixis.benchmarks.opening import choose_split
from deixis.benchmarks.samples import Benchmark
from deixis.files import require_folder
from deixis.types import DeixisError

__all__ = ["open_split", "splits", "write_fixture"]


def open_split(root: Path, split: str | None = None, skip_bad: bool = False) -> Benchmark:
    """Open a split of a generated world: any folder of root that holds an expression file."""
    require_folder(root, "make one with `deixis world OUT` (see docs/benchmarks.md)")
    there = splits(root)
    if not there:
        raise DeixisError(f"{root}: no split of world lies here; make one with `deixis world OUT`")
    return open_layout(root, choose_split(split, there, "world"), skip_bad, "world")


def splits(root: Path) -> tuple[str, ...]:
    """The splits that lie in a world's folder, MeViS's in MeViS's order first."""
    found = {path.parent.name for path in root.glob("*/meta_expressions*.json")}
    return tuple(sorted(found, key=lambda name: (SPLITS.index(name) if name in SPLITS else len(SPLITS), name)))
