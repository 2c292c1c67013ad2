"""One file, one benchmark: disk layout, splits, scored frames, submission format."""

from __future__ import annotations

import zipfile
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from deixis.files import Missing
from deixis.out_folder import Output
from deixis.tables import BENCHMARK_FILES
from deixis.types import DeixisError

if TYPE_CHECKING:
    from deixis.benchmarks.samples import Benchmark

BENCHMARKS = BENCHMARK_FILES


def _module(name: str) -> ModuleType:
    """The file of a benchmark. Raises DeixisError for a name that is none."""
    if name not in BENCHMARKS:
        raise DeixisError(f"unknown benchmark {name!r}; expected one of {', '.join(BENCHMARKS)}")
    return import_module(f"deixis.benchmarks.{name.replace('-', '_')}")


def open_benchmark(name: str, root: Path, split: str | None = None, skip_bad: bool = False) -> Benchmark:
    """Open a split of a benchmark.

    Args:
        name: Name listed in `BENCHMARKS`.
        root: Folder of the benchmark.
        split: Name of a split. Default: the one that is usually reported.
        skip_bad: Leave bad annotations out instead of stopping at them.

    Returns:
        The opened `Benchmark`, with its samples and, where public, its truth.

    Raises:
        DeixisError: For an unknown name or split, for missing files, and for bad annotations.

    Example:
        >>> from pathlib import Path
        >>> from deixis.benchmarks import open_benchmark
        >>> benchmark = open_benchmark("mevis", Path("mevis"))
        >>> benchmark.split, benchmark.protocol
        ('valid_u', 'expressions')
    """
    module = _module(name)
    try:
        return module.open_split(Path(root), split, skip_bad)
    except Missing as error:
        raise Missing(f"{error}{_nearby(error.path, Path(root))}", error.path) from error


def _nearby(missing: Path, root: Path) -> str:
    """Why a file is not below the root, where that is plain: the root is a zip, or one folder too high or too low."""
    if root.is_file():
        kind = "a zip, unpack it first" if zipfile.is_zipfile(root) else "a file"
        return f" ({root} is {kind}; the benchmark's folder is expected)"
    if not root.is_dir():
        return f" (there is no folder {root})"
    try:
        below = missing.relative_to(root)
        places = [*(p for p in sorted(root.iterdir()) if p.is_dir()), root.parent]
        found = next((place for place in places if (place / below).exists()), None)
    except (OSError, ValueError):
        return ""
    return f"; it is in {found}: give that folder" if found is not None else ""


def splits_of(name: str, root: Path) -> tuple[str, ...]:
    """List the splits that a benchmark can be opened with.

    Args:
        name: Name listed in `BENCHMARKS`.
        root: Folder of the benchmark.

    Returns:
        Names of the splits, the default first.

    Raises:
        DeixisError: For an unknown name.

    Example:
        >>> from pathlib import Path
        >>> from deixis.benchmarks import splits_of
        >>> splits_of("mevis", Path("mevis"))
        ('valid_u', 'train', 'valid')
    """
    module = _module(name)
    return module.splits(Path(root)) if hasattr(module, "splits") else module.SPLITS


def write_fixture(name: str, out: Path) -> None:
    """Write a tiny, valid copy of a benchmark in the layout of the real one.

    Args:
        name: Name listed in `BENCHMARKS`.
        out: Folder, new or empty.

    Raises:
        DeixisError: For an unknown name, or a folder that holds something.

    Example:
        >>> from pathlib import Path
        >>> from deixis.benchmarks import open_benchmark, write_fixture
        >>> write_fixture("ref-youtube-vos", Path("rvos"))
        >>> len(open_benchmark("ref-youtube-vos", Path("rvos"), "train").by_video())
        3
    """
    module, out = _module(name), Path(out)
    with Output(out, all_or_none=True, otherwise="name a new one") as output:
        made = output.scratch / "part-made"
        made.mkdir()
        module.write_fixture(made)
        for path in sorted(made.iterdir()):
            with output.item(path.name) as place:
                path.replace(place)
