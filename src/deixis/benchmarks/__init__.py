"""One file, one benchmark: disk layout, splits, scored frames, submission format.

BENCHMARKS maps the name on the command line to the module and the function that opens a split of it.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from deixis.types import DeixisError

if TYPE_CHECKING:
    from deixis.benchmarks.samples import Benchmark

BENCHMARKS = {
    "ref-youtube-vos": ("ref_youtube_vos", "open_split"),
    "ref-davis17": ("ref_davis17", "open_split"),
    "mevis": ("mevis", "open_split"),
    "a2d-sentences": ("a2d_sentences", "open_split"),
    "jhmdb-sentences": ("jhmdb_sentences", "open_split"),
    "refcoco": ("refcoco", "open_split"),
    "visor": ("visor", "open_split"),
    "world": ("world", "open_world"),
    "folder": ("folder", "open_split"),
}


def open_benchmark(name: str, root: Path, split: str | None = None, skip_bad: bool = False) -> Benchmark:
    """Open a split of a benchmark by name (None: the split that is usually reported).

    Raises DeixisError for an unknown name or split, for what is missing on disk, and for bad annotations unless
    ``skip_bad`` leaves them out.
    """
    if name not in BENCHMARKS:
        raise DeixisError(f"unknown benchmark {name!r}; deixis knows {', '.join(BENCHMARKS)}")
    module, function = BENCHMARKS[name]
    return getattr(import_module(f"deixis.benchmarks.{module}"), function)(Path(root), split, skip_bad)


def splits_of(name: str, root: Path) -> tuple[str, ...]:
    """The splits a benchmark can be opened with."""
    if name not in BENCHMARKS:
        raise DeixisError(f"unknown benchmark {name!r}; deixis knows {', '.join(BENCHMARKS)}")
    if name == "world":
        return import_module("deixis.benchmarks.world").world_splits(Path(root))
    if name == "folder":
        return import_module("deixis.benchmarks.folder").splits(Path(root))
    return import_module(f"deixis.benchmarks.{BENCHMARKS[name][0]}").SPLITS


def write_fixture(name: str, out: Path) -> None:
    """Write a tiny, valid copy of a benchmark in the layout of the real one. The folder must be empty or new."""
    if name not in BENCHMARKS:
        raise DeixisError(f"unknown benchmark {name!r}; deixis knows {', '.join(BENCHMARKS)}")
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DeixisError(f"{out} is not empty; a fixture is written to a new folder")
    out.mkdir(parents=True, exist_ok=True)
    import_module(f"deixis.benchmarks.{BENCHMARKS[name][0]}").write_fixture(out)
