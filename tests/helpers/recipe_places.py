"""Everything that a published recipe may need, in miniature."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path

from deixis.benchmarks import write_fixture
from deixis.training.recipes import RECIPES

OWN = ("light", "light_folder", "light_namer", "light_proposals", "light_scorer", "soc_folder", "tower_world")
PUBLISHED = [name for name in RECIPES if name not in OWN and not name.endswith("world")]
BENCHMARKS = ("ref-youtube-vos", "mevis", "a2d-sentences", "refcoco")


@lru_cache(maxsize=1)
def miniatures() -> Path:
    """A folder, kept for the run of the tests, with a fixture of every benchmark that recipes train on."""
    root = Path(tempfile.mkdtemp(prefix="deixis-recipes-"))
    for name in BENCHMARKS:
        write_fixture(name, root / name)
    (root / "videos.csv").write_text("film,caption\nfilm.mp4,a red box\n")
    (root / "film.mp4").write_bytes(b"")
    return root


def places_for(name: str) -> dict[str, Path]:
    """``--data`` for a recipe: all the fixtures, and files that need not be there before training begins."""
    root = miniatures()
    places = {benchmark: root / benchmark for benchmark in BENCHMARKS}
    if name == "slvp_pretrain":
        return {"videos": root / "videos.csv", "flow": root / "flow"}
    return places | ({} if name.startswith("slvp") else {"kinetics": root / "k.pth", "start": root / "s.safetensors"})
