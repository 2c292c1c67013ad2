"""What each system can represent of time, by construction: does its answer change with the order of the frames?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[1] / "bench"
BLIND = (
    "SOC on a tower of single frames",
    "VLP-RVOS, no temporal prompts, no cubes",
    "conv-CLIP, one window, not aligned",
)


@pytest.fixture
def can_it_know(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    import can_it_know as module

    return module


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["SOC", "SOC++", "VLP-RVOS", "SLVP-style, vision as query", "SLVP-style, language as query"]
)
def test_a_system_that_orders_its_frames_answers_a_reversed_film_differently(can_it_know: Any, name: str) -> None:
    found = can_it_know.measure(can_it_know.build(name))
    for change in can_it_know.CHANGES:
        assert found[change] > 4 * can_it_know.SAME, change


@pytest.mark.slow
@pytest.mark.parametrize("name", BLIND)
def test_a_system_without_an_order_of_frames_answers_any_order_alike(can_it_know: Any, name: str) -> None:
    """It cannot learn what only the order shows. Another sentence and a mirrored film still change its answer."""
    found = can_it_know.measure(can_it_know.build(name))
    assert found["reversed"] < can_it_know.SAME
    assert found["shuffled"] < can_it_know.SAME
    assert found["mirrored"] > 4 * can_it_know.SAME
    assert found["another sentence"] > 4 * can_it_know.SAME


@pytest.mark.slow
def test_conv_clip_notices_which_frames_are_neighbours_but_not_which_comes_first(can_it_know: Any) -> None:
    """Its frame queries attend to each other in windows of frames; nothing in a window says which frame is earlier."""
    found = can_it_know.measure(can_it_know.build("conv-CLIP"))
    assert found["reversed"] < can_it_know.SAME
    assert found["shuffled"] > 4 * can_it_know.SAME
