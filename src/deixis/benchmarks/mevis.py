"""MeViS (ICCV 2023) and MeViSv2 (2025): expressions of motion that may name several objects, or (v2) none.

Masks are COCO RLE in mask_dict.json, keyed by annotation id; the file of the training split has some 400 MB. It is read
once and indexed in the cache (DEIXIS_CACHE); from then on only the masks in use are read and decoded.
``world``, our generated benchmark, is written in this layout and opened here too.
"""

from __future__ import annotations

from pathlib import Path

from deixis.benchmarks.mevis_layout import SPLITS, open_layout, write_fixture
from deixis.benchmarks.opening import choose_split
from deixis.benchmarks.samples import Benchmark

__all__ = ["EXPECTED", "NAME", "SPLITS", "open_split", "write_fixture"]

NAME = "mevis"
EXPECTED = {  # read: the dataset's README; videos and sentences
    ("valid_u", 1): {"videos": 50, "expressions": 793},
    ("train", 1): {"videos": 1662, "expressions": 23051},
    ("valid", 1): {"videos": 140, "expressions": 2236},
    ("valid_u", 2): {"videos": 50, "expressions": 907},
    ("train", 2): {"videos": 1662, "expressions": 27502},
    ("valid", 2): {"videos": 140, "expressions": 2523},
}


def open_split(root: Path, split: str | None = None, skip_bad: bool = False) -> Benchmark:
    """Open a split of MeViS (default valid_u); v2 where the file is called meta_expressions_v2.json."""
    split = choose_split(split, SPLITS, NAME)
    return open_layout(root, split, skip_bad, NAME, EXPECTED)
