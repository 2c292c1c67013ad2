"""The second part of the suite: ``python -m pytest -m browser tests/browser``. Needs Chromium and Playwright."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # films.py, serving.py
