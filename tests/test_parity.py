"""SOC and SOC++ give the numbers of the authors' models, tensor by tensor.

The reference files lie in ``shared/fixtures``; another of the same form may be named in DEIXIS_FIXTURES.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from reference_tensors import build, read_meta, run_case
from torch import Tensor

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


@pytest.mark.slow
@pytest.mark.parametrize(("path", "name"), [pytest.param(p, n, id=f"{p.stem}-{n}") for p, n in tensors()])
def test_equals_the_authors_model(path: Path, name: str) -> None:
    expected = reference(path)[name]
    found = results(path, name.split("/")[0])[name].numpy()
    assert found.shape == expected.shape
    if "/loss/" in name:
        tolerance = 1e-4 if name.endswith("gradnorm") else 1e-5
        assert found == pytest.approx(expected, rel=tolerance)
    else:
        assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()
