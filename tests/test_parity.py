"""SOC and SOC++ give the numbers of the authors' models, tensor by tensor.

The reference files lie in ``shared/fixtures``; another of the same form may be named in DEIXIS_FIXTURES.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from reference_tensors import build, read_meta, run_case
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
from plain_soc import plainly

SHARED = Path(os.environ.get("DEIXIS_SHARED", Path(__file__).parents[2] / "shared"))
FILES = [Path(os.environ["DEIXIS_FIXTURES"])] if "DEIXIS_FIXTURES" in os.environ else sorted(
    (SHARED / "fixtures").glob("*.npz")
)  # fmt: skip


def tensors() -> list[tuple[Path, str]]:
    found = []
    for path in FILES:
        with np.load(path, allow_pickle=False) as file:
            found += [(path, name) for name in file.files if name != "meta"]
    return found


@lru_cache(maxsize=1)
def reference(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files if name != "meta"}


@lru_cache(maxsize=1)  # cases come one after the other
def results(path: Path, case: str) -> dict[str, Tensor]:
    meta = read_meta(path)
    return run_case(build(meta), meta["clips"][case], case)


@pytest.mark.skipif(
    not FILES, reason="no reference tensors: shared/fixtures is not here and DEIXIS_FIXTURES is not set"
)
def test_reference_files_are_at_hand() -> None:
    assert tensors()


def agrees(name: str, found: np.ndarray, expected: np.ndarray) -> bool:
    """Tensors to 2e-5 of their scale, losses to 1e-5 of themselves, the gradient's norm to 1e-4."""
    if found.shape != expected.shape:
        return False
    tolerance = 1e-4 if name.endswith("gradnorm") else 1e-5 if "/loss/" in name else 2e-5
    return bool(np.abs(found - expected).max() <= tolerance * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize(("path", "name"), [pytest.param(p, n, id=f"{p.stem}-{n}") for p, n in tensors()])
def test_equals_the_authors_model(path: Path, name: str) -> None:
    found, expected = results(path, name.split("/")[0])[name].numpy(), reference(path)[name]
    difference = np.abs(found - expected).max() / np.abs(expected).max() if found.shape == expected.shape else None
    assert agrees(name, found, expected), f"shapes {found.shape} {expected.shape}, difference {difference} of the scale"


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in FILES if read_meta(p)["system"] == "soc"], ids=lambda p: p.stem)
def test_the_plain_rendering_of_the_speed_bench_equals_the_authors_model(path: Path) -> None:
    meta = read_meta(path)
    model = plainly(build(meta))
    for case, clip in meta["clips"].items():
        found = run_case(model, clip, case)
        wrong = [k for k, v in reference(path).items() if k in found and not agrees(k, found[k].numpy(), v)]
        assert not wrong
