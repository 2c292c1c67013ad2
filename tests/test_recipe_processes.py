"""A published recipe is the same run on any number of processes: a step has the same clips, and there are as many."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.recipe_places import PUBLISHED, places_for
from safetensors.torch import load_file

from deixis import weights
from deixis.systems.soc import Soc, SocConfig, soc_debug
from deixis.training.checkpoint import read_facts
from deixis.training.feed import sample_indices
from deixis.training.recipes import find_recipe
from deixis.training.record import read_metrics
from deixis.training.sources import read_clip
from deixis.types import DeixisError

PROGRAM = Path(__file__).parent / "helpers" / "training_recipe.py"


def drawn(train: Any, processes: int, step: int) -> list[int]:
    """The sample indices of a step, over all processes."""
    batch, accumulate = train.share(processes)
    return sorted(
        index
        for micro in range(accumulate)
        for rank in range(processes)
        for index in sample_indices(step, micro, rank, accumulate=accumulate, ranks=processes, batch=batch)
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_steps_are_of_the_same_clips_on_any_number_of_processes(name: str) -> None:
    train = find_recipe(name)(places_for(name), overrides={}).train
    whole = train.global_batch
    assert whole, "a published run states its global batch"
    for processes in (1, 2, 8):
        if whole % processes:
            with pytest.raises(DeixisError, match="cannot be shared by 8 processes"):
                train.share(processes)
            continue
        for step in (0, 1, train.steps - 1):
            assert drawn(train, processes, step) == list(range(step * whole, (step + 1) * whole))


def test_vlp_rvos_draws_anchored_frames_of_the_whole_video_in_other_colours() -> None:
    run = find_recipe("vlp_rvos_ref_youtube_vos")(places_for("vlp_rvos_ref_youtube_vos"), overrides={})
    places, _, data, _ = run.samples.args  # type: ignore[attr-defined]
    (source, place) = places[0]
    assert (source.how, data.colours, data.crop) == ("anchored", 0.5, 0.5)
    plain, other = (
        read_clip(source, place, (0, (1,)), replace(data, frames=3, flip=0, colours=chance, crop=0.0), rng(5))
        for chance in (0.0, 1.0)
    )
    assert torch.equal(plain.target.masks, other.target.masks)
    assert not torch.equal(plain.frames, other.frames)
    again = read_clip(source, place, (0, (1,)), replace(data, frames=3, flip=0, colours=1.0, crop=0.0), rng(5))
    assert torch.equal(other.frames, again.frames)
    cut = read_clip(source, place, (0, (1,)), replace(data, frames=3, flip=0, colours=0.0, crop=1.0), rng(5))
    assert cut.frames.shape[-2:] == cut.target.masks.shape[-2:]
    assert min(cut.frames.shape[-2:]) >= 384
    assert max(cut.frames.shape[-2:]) <= 600
    sample, size = run.samples(0)
    assert bool(sample.target.visible[:, sample.target.referred].any())
    assert size == (336, 336)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def differing(small: Any, whole: Any, prefix: str) -> dict[str, str]:
    """The overrides that make one config of the other."""
    found: dict[str, str] = {}
    for one in fields(small):
        value, name = getattr(small, one.name), f"{prefix}{one.name}"
        if is_dataclass(value):
            found |= differing(value, getattr(whole, one.name), f"{name}.")
        elif value != getattr(whole, one.name):
            found[name] = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return found


@pytest.mark.slow
def test_two_real_processes_of_a_published_recipe_take_the_steps_of_one(tmp_path: Path) -> None:
    """soc_ref_youtube_vos, its network made small by overrides, over gloo: the same clips, losses and weights."""
    debug = soc_debug().config
    small = replace(
        debug, dropout=0.0, short_side=48, long_side=72, vision=replace(debug.vision, drop_path=0.0),
        text=replace(debug.text, dropout=0.0, frozen=True),
    )  # fmt: skip
    torch.manual_seed(0)
    weights.save(Soc(small), tmp_path / "start.safetensors")
    quick = {"train.steps": "2", "train.workers": "0", "train.threads": "1", "train.log_every": "1"}
    settings = [
        f"ref-youtube-vos={places_for('soc_ref_youtube_vos')['ref-youtube-vos']}",
        f"start={tmp_path / 'start.safetensors'}",
        *(f"{key}={value}" for key, value in (differing(small, SocConfig(), "model.") | quick).items()),
    ]
    for processes, out in ((1, "one"), (2, "two")):
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [sys.executable, *(launcher if processes > 1 else []), str(PROGRAM), "soc_ref_youtube_vos"]
        done = subprocess.run(
            [*command, str(tmp_path / out), *settings], env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    seen = [[int(x) for x in (tmp_path / f"{name}").read_text().split()]
            for name in ("one_seen_0", "two_seen_0", "two_seen_1")]  # fmt: skip
    assert seen[0] == list(range(16))  # two steps of the published eight
    assert sorted(seen[1] + seen[2]) == seen[0]
    assert len(seen[1]) == len(seen[2]) == 8
    assert all(max(own[:4]) < 8 <= min(own[4:]) for own in seen[1:])
    assert read_facts(tmp_path / "two" / "last.safetensors")["processes"] == 2
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [line["step"] for line in one] == [line["step"] for line in two] == [1, 2]
    for a, b in zip(one, two, strict=True):
        assert b["total"] == pytest.approx(a["total"], rel=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)
    before, first, other = (
        load_file(path)
        for path in (
            tmp_path / "start.safetensors",
            tmp_path / "one/model.safetensors",
            tmp_path / "two/model.safetensors",
        )
    )
    moved = [name for name in first if first[name].is_floating_point() and not torch.equal(first[name], before[name])]
    most = max((first[name] - before[name]).abs().max().item() for name in moved)
    assert max((first[name] - other[name]).abs().max().item() for name in moved) < 0.02 * most
