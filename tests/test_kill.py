"""kill -9 at random moments: no half result is taken for a whole one, and going on gives the bytes of an unbroken run.

bench/kill.py does it, in children forked from one process that has imported torch; here with few moments.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
MOMENTS = 2

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="processor times are read from /proc"),
]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    report = tmp_path_factory.mktemp("kill") / "kill.json"
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "kill.py"), "--moments", str(MOMENTS), "--seed", "5", "--json", report],
        capture_output=True, text=True, timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(report.read_text())["commands"]


@pytest.mark.parametrize(
    "command",
    ["segment", "segment_inside", "train", "train_inside", "predict", "predict_inside", "world", "world_inside",
     "pack_inside"],
)  # fmt: skip
def test_after_a_kill_nothing_half_passes_for_whole_and_going_on_gives_the_same_bytes(
    killed: dict[str, Any], command: str
) -> None:
    trials = killed[command]
    assert len(trials) == MOMENTS
    assert sum(trial["killed"] for trial in trials) >= MOMENTS - 1, "the kills came too late"
    assert [trial["wrong"] for trial in trials] == [[]] * MOMENTS
    assert [trial["differ"] for trial in trials] == [[]] * MOMENTS
    assert [trial["debris"] for trial in trials] == [[]] * MOMENTS
