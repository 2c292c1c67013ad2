"""SOC and SOC++ give the numbers of the authors' models, tensor by tensor.

A slice of the reference tensors lies in ``tests/data`` (``make_reference_slice.py`` there cuts it); the whole files lie
in ``shared/fixtures``, which is not distributed, and another of the same form may be named in DEIXIS_FIXTURES.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from helpers.plain_soc import plainly
from helpers.reference_tensors import build, read_meta, run_case
from torch import Tensor

SHARED = Path(os.environ.get("DEIXIS_SHARED", Path(__file__).parents[2] / "shared"))
SLICES = sorted((Path(__file__).parent / "data").glob("reference_*.npz"))
WHOLE = [Path(os.environ["DEIXIS_FIXTURES"])] if "DEIXIS_FIXTURES" in os.environ else sorted(
    (SHARED / "fixtures").glob("*.npz")
)  # fmt: skip
FILES = WHOLE or SLICES  # the slice says nothing that the whole files do not say


def tensors() -> list[tuple[Path, str]]:
    found = []
    for path in FILES:
        with np.load(path, allow_pickle=False) as file:
            found += [(path, name) for name in file.files if name != "meta" and not name.startswith("whole/")]
    return found


@lru_cache(maxsize=1)
def reference(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files if name != "meta"}


@lru_cache(maxsize=1)  # cases come one after the other
def results(path: Path, case: str) -> dict[str, Tensor]:
    meta = read_meta(path)
    return run_case(build(meta), meta["clips"][case], case)


def test_reference_tensors_of_both_systems_are_at_hand() -> None:
    assert {read_meta(path)["system"] for path in SLICES} == {"soc", "soc_plus_plus"}
    assert len(tensors()) > 150


@pytest.mark.skipif(not WHOLE, reason="the whole reference tensors (shared/fixtures) are not here")
@pytest.mark.parametrize("path", SLICES, ids=lambda p: p.stem)
def test_the_slice_is_cut_from_the_whole_tensors(path: Path) -> None:
    (whole,) = [p for p in WHOLE if read_meta(p)["system"] == read_meta(path)["system"]]
    kept, every = reference(path), read_meta(path)["every"]
    with np.load(whole, allow_pickle=False) as file:
        assert every.keys() == set(file.files) - {"meta"}
        for name, (step, shape) in every.items():
            assert list(file[name].shape) == shape
            assert np.array_equal(file[name].reshape(-1)[::step], kept[name])


def numbers(path: Path, name: str, tensor: np.ndarray) -> np.ndarray:
    """Of a tensor those numbers that the file holds: all, or every k-th where the file is a slice."""
    every = read_meta(path).get("every")
    if every is None:
        return tensor
    step, shape = every[name]
    assert list(tensor.shape) == shape, f"{name} has the shape {tensor.shape}, expected {shape}"
    return tensor.reshape(-1)[::step]


def agrees(name: str, found: np.ndarray, expected: np.ndarray) -> bool:
    """Tensors to 2e-5 of their scale, losses to 1e-5 of themselves, the gradient's norm to 1e-4."""
    if found.shape != expected.shape:
        return False
    tolerance = 1e-4 if name.endswith("gradnorm") else 1e-5 if "/loss/" in name else 2e-5
    return bool(np.abs(found - expected).max() <= tolerance * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize(("path", "name"), [pytest.param(p, n, id=f"{p.stem}-{n}") for p, n in tensors()])
def test_equals_the_authors_model(path: Path, name: str) -> None:
    found, expected = numbers(path, name, results(path, name.split("/")[0])[name].numpy()), reference(path)[name]
    difference = np.abs(found - expected).max() / np.abs(expected).max() if found.shape == expected.shape else None
    assert agrees(name, found, expected), f"shapes {found.shape} {expected.shape}, difference {difference} of the scale"


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in FILES if read_meta(p)["system"] == "soc"], ids=lambda p: p.stem)
def test_the_plain_rendering_of_the_speed_bench_equals_the_authors_model(path: Path) -> None:
    meta = read_meta(path)
    model = plainly(build(meta))
    for case, clip in meta["clips"].items():
        found = run_case(model, clip, case)
        expected = {k: v for k, v in reference(path).items() if k in found}
        wrong = [k for k, v in expected.items() if not agrees(k, numbers(path, k, found[k].numpy()), v)]
        assert not wrong
