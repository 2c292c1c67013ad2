"""The systems, one file a paper, and their presets by name."""

from __future__ import annotations
