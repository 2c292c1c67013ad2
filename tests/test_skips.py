"""The list of allowed skips in .ci: a skip that is not on it fails the run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import not_allowed, patterns

LIST = Path(__file__).parents[1] / ".ci" / "allowed_skips.txt"


@pytest.mark.slow
@pytest.mark.parametrize(("reason", "passes"), [("open_clip is not installed, and", True), ("because", False)])
def test_a_skip_that_is_not_on_the_list_fails_the_run(tmp_path: Path, reason: str, passes: bool) -> None:
    (tmp_path / "test_one.py").write_text(f"import pytest\ndef test_one():\n    pytest.skip({reason!r})\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "--rootdir", str(tmp_path), "--only-skips", str(LIST),
         str(tmp_path)],
        capture_output=True, text=True, cwd=Path(__file__).parent,
    )  # fmt: skip
    assert (done.returncode == 0) == passes, done.stdout
    assert ("skips that are not on the list" in done.stdout) != passes


def test_the_list_is_read_without_its_comments() -> None:
    listed = patterns(LIST)
    assert listed
    assert not any("#" in line for line in listed)
    assert not_allowed({"test": "no such reason"}, listed) == ["test: no such reason"]
