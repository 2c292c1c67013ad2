"""Can it know? How far the answer of each system moves when its film is reversed, shuffled, mirrored or slowed.

    python bench/can_it_know.py           # prints the table of docs/results/can_it_know.md; two minutes of one core

A system that gives a film and its reverse the same answer, frame for frame, cannot learn "moving left" from the order
of frames, however long it trains. Random weights and random films are enough: what is equal here by construction is
equal for every weight. Each number is the largest change of the frame scores and of the mask logits, brought back to
the order and place of the first film, as a share of the largest logit; the larger of the two.

B clips, T frames, Q queries; h, w are a quarter of the frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from deixis.encoders.conv_clip import small_conv_clip
from deixis.systems.conv_clip_mevis import ConvClipMevis, conv_clip_mevis_debug
from deixis.systems.slvp import slvp_debug, slvp_language_debug
from deixis.systems.soc import Soc, soc_debug
from deixis.systems.soc_plus_plus import soc_plus_plus_debug
from deixis.systems.vlp_rvos import VlpRvos, vlp_rvos_debug
from deixis.types import Batch, Expression

ClipPrediction = tuple[Tensor, Tensor]  # frame scores (T, Q) and mask logits (T, Q, h, w), best query first

FRAMES, SIDE = 4, 64  # of the film; pixels, a multiple of every stride
LENGTHS = {"conv-CLIP, 5 frames": 5}  # not a multiple of its windows of 2 frames
SAME = 2e-4  # below it an answer counts as unchanged: fp32 sums in another order
SENTENCE, ANOTHER = "the dog that moves left", "a red disc"


def soc_on_a_frame_tower() -> Soc:
    """SOC on the frozen tower that reads each frame by itself, as ``soc_world`` builds it with ``--data tower=``."""
    return Soc(replace(soc_debug().config, tower=small_conv_clip()))


def soc_without_cluster() -> Soc:
    return Soc(replace(soc_debug().config, cluster=False))


def conv_clip_one_window() -> ConvClipMevis:
    """All frames in one window of the frame queries' attention: no window's edge is left to count frames by."""
    return ConvClipMevis(replace(conv_clip_mevis_debug().config, window_frames=FRAMES, align=False))


def vlp_rvos_in_frames() -> VlpRvos:
    """Without every part that joins frames: temporal prompts, cubes, history; the words still read the whole clip."""
    return VlpRvos(replace(vlp_rvos_debug().config, capture=False, cube=False, history=False))


SYSTEMS: dict[str, Callable[[], Any]] = {
    "SOC": soc_debug,
    "SOC, no cluster": soc_without_cluster,
    "SOC on a tower of single frames": soc_on_a_frame_tower,
    "SOC++": soc_plus_plus_debug,
    "VLP-RVOS": vlp_rvos_debug,
    "VLP-RVOS, no temporal prompts, no cubes": vlp_rvos_in_frames,
    "conv-CLIP": conv_clip_mevis_debug,
    "conv-CLIP, 5 frames": conv_clip_mevis_debug,
    "conv-CLIP, one window, not aligned": conv_clip_one_window,
    "SLVP-style, vision as query": slvp_debug,
    "SLVP-style, language as query": slvp_language_debug,
}
CHANGES = ("reversed", "shuffled", "mirrored", "each frame twice", "another sentence")


def film(count: int = FRAMES) -> Tensor:
    """(1, T, 3, H, W): a bright square that moves to the right over noise."""
    frames = 0.3 * torch.randn(1, count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    for t in range(count):
        frames[0, t, :, 20:40, 6 + 8 * t : 26 + 8 * t] += 2.0
    return frames


def build(name: str, seed: int = 0) -> Any:
    """The system with random weights. Gates that start at 0, where words and prompts do not act, are opened."""
    torch.manual_seed(seed)
    model = SYSTEMS[name]()
    for key, parameter in model.named_parameters():
        if key == "guide.gate":
            torch.nn.init.constant_(parameter, 0.5)
        if parameter.requires_grad and parameter.ndim > 1 and key.startswith(("prompts.", "fuse.", "video_decoder.")):
            torch.nn.init.normal_(parameter, std=0.3)  # published starts are near nothing
        if key.endswith(("pixel_scale", "word_scale")):
            torch.nn.init.constant_(parameter, 0.5)
    return model.eval()


@torch.inference_mode()
def predict_clip(model: Any, frames: Tensor, sentence: str) -> ClipPrediction:
    b, t, _, h, w = frames.shape
    padding = torch.zeros(b, t, h, w, dtype=torch.bool)
    found = model(Batch(frames, padding, (Expression(sentence),), ((h, w),) * b, None, None))
    order = found.scores[0].mean(0).argsort(descending=True)  # queries are returned best first, or in their order
    return found.scores[0, :, order], found.masks[0, :, order]


def differs(a: ClipPrediction, b: ClipPrediction) -> float:
    """The largest change of scores and masks, each as a share of its largest logit."""
    return max(float((x - y).abs().max() / x.abs().max().clamp(min=1e-6)) for x, y in zip(a, b, strict=True))


def of_frames(found: ClipPrediction, index: list[int]) -> ClipPrediction:
    return found[0][index], found[1][index]


def measure(model: Any, count: int = FRAMES) -> dict[str, float]:
    """Each of CHANGES: how far the answer moves, after undoing the change on the answer's frames and columns."""
    frames, back = film(count), list(range(count))[::-1]
    shuffled = [2, 0, 3, 1, *range(4, count)]
    before = predict_clip(model, frames, SENTENCE)
    mirrored = predict_clip(model, frames.flip(-1), SENTENCE)
    undone = {
        "reversed": of_frames(predict_clip(model, frames[:, back], SENTENCE), back),
        "shuffled": of_frames(
            predict_clip(model, frames[:, shuffled], SENTENCE), [shuffled.index(t) for t in range(count)]
        ),
        "mirrored": (mirrored[0], mirrored[1].flip(-1)),
        "each frame twice": of_frames(
            predict_clip(model, frames.repeat_interleave(2, 1), SENTENCE), list(range(0, 2 * count, 2))
        ),
        "another sentence": predict_clip(model, frames, ANOTHER),
    }
    return {change: differs(before, after) for change, after in undone.items()}


def main() -> None:
    print("| system | " + " | ".join(CHANGES) + " |")
    print("|---|" + "---|" * len(CHANGES))
    for name in SYSTEMS:
        found = measure(build(name), LENGTHS.get(name, FRAMES))
        cells = [f"{found[c]:.0e}" if found[c] >= SAME else f"**same** ({found[c]:.0e})" for c in CHANGES]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
