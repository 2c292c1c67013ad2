"""Benchmarks as training data: which frames of a video make a clip, the clip with its target, and stills set in motion.

The frame choices are those of published code, by name: ReferFormer's (anchor, near, far), MTTR's and SOC's (windows),
LMPM's on MeViS (a reference frame and its surroundings). T frames of a clip, N objects, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from deixis.benchmarks.samples import Benchmark, Sample, Video
from deixis.types import DeixisError, Expression, Target
from deixis.video import Film

NEAR = (1, 3)  # frames before and after the anchor (read: ReferFormer)
ROTATION, SHIFT, PERSPECTIVE = (
    20.0,
    0.10,
    0.08,
)  # degrees, share of the side, share of the side (read: ReferFormer, SOC)
BRIGHTNESS, COLOUR = 40.0, 0.05  # of 255; share of hue and saturation (read)
BLUR, BLUR_SIZES = 0.25, (9, 11)  # chance of motion blur; its length in pixels (read)


# --- which frames ----------------------------------------------------------------------------------------------------


def anchored_frames(anchor: int, length: int, count: int, rng: np.random.Generator) -> list[int]:
    """ReferFormer's choice: the anchor, one frame 1-3 before, one 1-3 after, the rest from outside that span; sorted.

    A video too short for that gives every frame it has, and repeats some.
    """
    before = max(0, anchor - int(rng.integers(NEAR[0], NEAR[1] + 1)))
    after = min(length - 1, anchor + int(rng.integers(NEAR[0], NEAR[1] + 1)))
    chosen = [anchor, before, after][:count]
    rest = count - len(chosen)
    far = [i for i in range(length) if i < before or i > after]
    if rest <= len(far):
        chosen += rng.choice(far, rest, replace=False).tolist() if rest else []
    else:
        others = far + [i for i in range(length) if i not in far and i not in chosen]
        chosen += others[:rest]
        chosen += rng.integers(0, length, max(0, rest - len(others))).tolist()
    return sorted(chosen)


def surrounding_frames(reference: int, length: int, count: int, reach: int, rng: np.random.Generator) -> list[int]:
    """LMPM's choice on MeViS: the reference frame and others from within ``reach`` frames of it; sorted."""
    near = [i for i in range(max(0, reference - reach), min(length, reference + reach + 1)) if i != reference]
    others = rng.choice(near, count - 1, replace=len(near) < count - 1).tolist() if near else [reference] * (count - 1)
    return sorted([reference, *others])


def consecutive_windows(length: int, count: int) -> list[list[int]]:
    """MTTR's and SOC's choice: windows side by side, the last moved back to be full; short videos repeat their end."""
    if length < count:
        return [[min(i, length - 1) for i in range(count)]]
    starts = [*range(0, length - count + 1, count)]
    if starts[-1] + count < length:
        starts.append(length - count)
    return [list(range(start, start + count)) for start in starts]


def centred_window(centre: int, count: int) -> list[int]:
    """A2D's choice: count // 2 frames before, the rest after; indices below 0 or past the end are to be clamped."""
    return list(range(centre - count // 2, centre + (count + 1) // 2))


# --- pixels and targets ----------------------------------------------------------------------------------------------


def read_frames(video: Video, indices: Sequence[int]) -> np.ndarray:
    """(T, H, W, 3) uint8 RGB of frames by index; of a film file, indices outside the film are clamped to its ends.

    Of a film file an index counts the film's own frames from 0. Raises DeixisError for what cannot be read.
    """
    if isinstance(video.frames, tuple):
        frames = video.frames
        return np.stack([_read_image(str(frames[min(max(i, 0), len(frames) - 1)])) for i in indices])
    wanted = {max(i, 0) for i in indices}
    found: dict[int, np.ndarray] = {}
    last = None
    for frame in Film(video.frames).frames():
        last = frame
        if frame.index in wanted:
            found[frame.index] = frame.pixels()
        if frame.index >= max(wanted):
            break
    assert last is not None, "a Film without frames is refused when it is opened"
    end = last.pixels() if len(found) < len(wanted) else next(iter(found.values()))
    return np.stack([found.get(max(i, 0), end) for i in indices])


def _read_image(path: str) -> np.ndarray:
    # A pipe would be waited for.
    picture = cv2.imread(path, cv2.IMREAD_COLOR_RGB) if Path(path).is_file() else None
    if picture is None:
        raise DeixisError(f"{path}: not a readable image; is the download whole?")
    return picture


def film_index(sample: Sample, index: int) -> int:
    """Which frame of the film, from 0, the video's frame ``index`` is; frame names of film files are numbers."""
    return index if isinstance(sample.video.frames, tuple) else int(sample.video.names[index]) - sample.video.first


@dataclass(frozen=True, eq=False)
class TrainingClip:
    """One item to train on. frames: (T, 3, H, W) uint8.  target: of the ``wanted`` frames only, where not None."""

    frames: Tensor
    expression: Expression
    target: Target
    wanted: tuple[int, ...] | None = None


def training_clip(benchmark: Benchmark, sample: Sample, indices: Sequence[int]) -> TrainingClip:
    """The frames of a sample with the truth of every labelled object; the objects referred to are marked.

    indices: frames of the video. Where only one frame is labelled (A2D, JHMDB) they are a window around it, and the
    target is of that frame alone. Raises DeixisError for a split without truth.
    """
    if benchmark.truth is None or sample.objects is None:
        raise DeixisError(f"{benchmark.name} {benchmark.split} has no public truth to train on")
    wanted = None
    labelled = list(indices)
    shown = list(indices)
    if sample.scored is not None:
        labelled = [sample.scored[0]]
        centre = film_index(sample, sample.scored[0])
        if centre not in shown:
            raise DeixisError(f"{sample.id}: the labelled frame {centre} must be among the frames asked for, {shown}")
        wanted = (shown.index(centre),)
    truths = [benchmark.truth(sample.video, index) for index in labelled]
    ids = list(dict.fromkeys([*sample.objects, *(key for truth in truths for key in truth.masks)]))
    size = truths[0].size
    masks = np.zeros((len(truths), len(ids), *size), bool)
    for t, truth in enumerate(truths):
        for n, key in enumerate(ids):
            if key in truth.masks:
                masks[t, n] = truth.masks[key]
    frames = torch.from_numpy(read_frames(sample.video, shown)).permute(0, 3, 1, 2)
    referred = np.array([key in sample.objects for key in ids], bool)
    return TrainingClip(frames, Expression(sample.text, sample.id), make_target(masks, referred), wanted)


def make_target(masks: np.ndarray, referred: np.ndarray) -> Target:
    """A Target from (T, N, H, W) bool masks and (N,) bool: boxes (half open) and visibility follow from the masks."""
    t, n, height, width = masks.shape
    columns: np.ndarray = np.any(masks, axis=2)  # (T, N, W)
    rows: np.ndarray = np.any(masks, axis=3)  # (T, N, H)
    visible = np.any(rows, axis=2)
    left, right = columns.argmax(2), width - columns[:, :, ::-1].argmax(2)
    top, bottom = rows.argmax(2), height - rows[:, :, ::-1].argmax(2)
    boxes = np.stack([(left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width,
                      (bottom - top) / height], axis=-1)  # fmt: skip
    boxes = np.where(visible[..., None], boxes, 0).reshape(t, n, 4)
    return Target(
        torch.from_numpy(masks),
        torch.from_numpy(boxes.astype(np.float32)),
        torch.from_numpy(visible),
        torch.from_numpy(referred),
    )


# --- stills set in motion --------------------------------------------------------------------------------------------


def pseudo_clip(
    image: np.ndarray, masks: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A clip from a still: the still and count - 1 turned, shifted, bent, recoloured, blurred copies, in random order.

    image: (H, W, 3) uint8.  masks: (N, H, W) bool. Returns (T, H, W, 3) uint8 and (T, N, H, W) bool.
    """
    frames, all_masks = [image], [masks]
    height, width = image.shape[:2]
    for _ in range(count - 1):
        warp = _random_warp(height, width, rng)
        frame = cv2.warpPerspective(image, warp, (width, height), flags=cv2.INTER_LINEAR)
        frames.append(_blur(_recolour(frame, rng), rng))
        warped = [
            cv2.warpPerspective(m.astype(np.uint8), warp, (width, height), flags=cv2.INTER_NEAREST) for m in masks
        ]
        all_masks.append(np.array(warped, bool).reshape(masks.shape))
    order = rng.permutation(count)
    return np.stack(frames)[order], np.stack(all_masks)[order]


def _random_warp(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    bent = corners + rng.uniform(-PERSPECTIVE, PERSPECTIVE, (4, 2)) * (width, height)
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-ROTATION, ROTATION), 1.0)
    moved = bent @ turn[:, :2].T + turn[:, 2] + rng.uniform(-SHIFT, SHIFT, 2) * (width, height)
    return cv2.getPerspectiveTransform(corners, moved.astype(np.float32))


def _recolour(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    hsv = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV).astype(np.float32)
    hsv[..., 0] = (hsv[..., 0] + 180 * rng.uniform(-COLOUR, COLOUR)) % 180
    hsv[..., 1] *= 1 + rng.uniform(-COLOUR, COLOUR)
    rgb = cv2.cvtColor(hsv.clip(0, 255).astype(np.uint8), cv2.COLOR_HSV2RGB).astype(np.float32)
    return (rgb + rng.uniform(-BRIGHTNESS, BRIGHTNESS)).clip(0, 255).astype(np.uint8)


def _blur(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if rng.random() >= BLUR:
        return frame
    size = int(rng.choice(BLUR_SIZES))
    line = np.zeros((size, size), np.float32)
    line[size // 2] = 1 / size
    turned = cv2.warpAffine(
        line, cv2.getRotationMatrix2D((size // 2, size // 2), rng.uniform(0, 180), 1.0), (size, size)
    )
    return cv2.filter2D(frame, -1, (turned / max(float(turned.sum()), 1e-6)).astype(np.float32))
