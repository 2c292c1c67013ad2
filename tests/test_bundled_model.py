"""The model that comes with deixis, on the film that comes with deixis."""

from __future__ import annotations

import numpy as np
import pytest

import deixis
from deixis import weights
from deixis.video import Video


@pytest.mark.slow
def test_the_bundled_model_marks_the_same_in_both_precisions_in_every_frame_of_the_demo() -> None:
    """Once a good mask was lost in some frames, and rounding alone decided in which."""
    film = Video(weights.DEMO_FILM, end=0.65)
    (fp32,), (bf16,) = (
        deixis.segment(film, ["the woman"], precision=precision, device="cpu") for precision in ("fp32", "bf16")
    )
    assert fp32.present
    areas = fp32.masks.areas()
    assert len(areas) == 8
    assert areas.min() > 0.5 * np.median(areas)  # she stays in the picture
    for a, b in zip(fp32.masks, bf16.masks, strict=True):
        assert (a & b).sum() >= 0.8 * (a | b).sum()
