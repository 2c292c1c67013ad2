"""What the stages of light compute stays on the model's device. ``meta`` stands for a GPU: it computes no numbers, and
refuses tensors that were left on the CPU."""

from __future__ import annotations

import contextlib
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from deixis.losses.proposals import LabelledFrame, ProposalWeights, proposal_losses
from deixis.systems.light import FrameFeatures, Light, light_debug_config
from deixis.training.token_batches import TokenBatch, scorer_losses

DEVICE = "meta"


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Light:
    true = Tensor.__bool__
    monkeypatch.setattr(
        Tensor, "__bool__", lambda x: False if x.device.type == DEVICE else true(x)
    )  # nothing is padded
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # meta has none
    return Light(replace(light_debug_config(), train_vision=True)).to(DEVICE)


def test_the_device_that_stands_for_a_gpu_refuses_what_lies_on_the_cpu() -> None:
    with pytest.raises(RuntimeError, match="device"):
        torch.zeros(3, device=DEVICE) + torch.zeros(3)


def test_proposals_and_their_losses_stay_on_the_device_with_the_encoders_in_training(system: Light) -> None:
    frames = torch.zeros(2, 3, 64, 96, device=DEVICE)
    features = system.encode_frames(frames)
    cells, pixels, objectness = system.pixel_decoder(features, frames, torch.zeros(2, 64, 96, device=DEVICE))
    unknown = torch.zeros(8, 12, dtype=torch.bool, device=DEVICE)
    truth = LabelledFrame(torch.zeros(3, 16, 24, device=DEVICE), torch.ones(3, device=DEVICE), unknown)
    terms = proposal_losses(
        system.kernels, system.config.mask_hidden, cells[:1], pixels[:1], objectness[:1], truth, ProposalWeights()
    )
    torch.stack(list(terms.values())).sum().backward()
    assert next(system.tiny_vit.parameters()).grad is not None
    assert next(system.efficient_net.parameters()).grad is not None


def test_tokens_and_the_scorers_loss_stay_on_the_device_and_a_batch_moves_there(system: Light) -> None:
    frames = torch.zeros(1, 3, 64, 96, device=DEVICE)
    features = system.encode_frames(frames)
    found = system.propose(features, frames, torch.zeros(1, 64, 96, device=DEVICE))
    assert all(getattr(features, f.name).device.type == DEVICE for f in fields(FrameFeatures))
    tracks = system.pool_tracks(features, frames[None], found.masks[None].sigmoid(), found.scores[None])
    none = torch.zeros(2, system.config.queries, dtype=torch.bool)
    which, absent = torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.bool)
    on_cpu = TokenBatch(tracks, ("a dog", "red"), which, none, none, absent, torch.ones(2), none, which[:1])
    batch = on_cpu.to(DEVICE)
    assert batch.removed.device.type == batch.which.device.type == DEVICE
    scorer_losses(None, system, batch)["choice"].backward()
    assert next(system.scorer.parameters()).grad is not None
