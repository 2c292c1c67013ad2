"""Clips with their targets: which frames make one, stills set in motion, batches.

B clips, T frames, N objects, K sentences of all clips together, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from deixis.benchmarks.frames import film_index, read_frames
from deixis.benchmarks.samples import Benchmark, Sample
from deixis.inference import model_size
from deixis.synthetic.scene import SyntheticVideo
from deixis.training.augment import mirror_words
from deixis.types import Batch, DeixisError, Expression, SystemConfig, Target
from deixis.video import normalise_pixels, resize

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


@dataclass(frozen=True, eq=False)
class TrainingClip:
    """One item to train on. frames: (T, 3, H, W) uint8.  target: of the ``wanted`` frames only, where not None.
    category: the number of the class of what is named, or None; ``collate`` gives it to the target."""

    frames: Tensor
    expression: Expression
    target: Target
    wanted: tuple[int, ...] | None = None
    category: int | None = None


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
            raise DeixisError(f"{sample.id}: the labelled frame {centre} must be among the frames of the clip, {shown}")
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
    category = None if sample.category is None else benchmark.categories.index(sample.category)
    return TrainingClip(frames, Expression(sample.text, sample.id), make_target(masks, referred), wanted, category)


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


@dataclass(frozen=True, eq=False)
class ClipBatch:
    """frames: (B, T, 3, H, W) uint8.  unknown: (B, T, H, W) bool, pixels whose truth is not known.
    targets: B of them (``referred`` is not used).  texts: K.  which: (K,) the clip of each.
    referred: K tuples of object indices, () where the named object is absent.
    """

    frames: Tensor
    unknown: Tensor
    targets: tuple[Target, ...]
    texts: tuple[str, ...]
    which: Tensor
    referred: tuple[tuple[int, ...], ...]

    def to(self, device: torch.device | str) -> ClipBatch:
        return ClipBatch(
            self.frames.to(device, non_blocking=True),
            self.unknown.to(device),
            tuple(t.to(device) for t in self.targets),
            self.texts,
            self.which.to(device),
            self.referred,
        )

    def pixels(self, mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
        """(frames (B, T, 3, H, W) normalised float, padding (B, T, H, W), nowhere True)."""
        x = self.frames.float() / 255
        x = (x - x.new_tensor(mean)[:, None, None]) / x.new_tensor(std)[:, None, None]
        return x, torch.zeros_like(self.unknown)


def clip_target(film: SyntheticVideo) -> Target:
    """A film's masks as a Target; boxes are unused here and set to 0."""
    masks = torch.from_numpy(np.ascontiguousarray(film.masks))
    t, n = masks.shape[:2]
    return Target(masks, torch.zeros(t, n, 4), masks.flatten(2).any(2), torch.zeros(n, dtype=torch.bool))


def gather_clips(films: Sequence[SyntheticVideo]) -> ClipBatch:
    """Films of one size as a batch."""
    frames = torch.stack([torch.from_numpy(np.ascontiguousarray(f.frames)).permute(0, 3, 1, 2) for f in films])
    unknown = torch.stack(
        [
            torch.zeros(f.frames.shape[:3], dtype=torch.bool) if f.ignore is None else torch.from_numpy(f.ignore)
            for f in films
        ]
    )
    sentences = [(i, s) for i, f in enumerate(films) for s in f.sentences]
    return ClipBatch(
        frames,
        unknown,
        tuple(clip_target(f) for f in films),
        tuple(s.text for _, s in sentences),
        torch.tensor([i for i, _ in sentences], dtype=torch.long),
        tuple(tuple(s.objects) for _, s in sentences),
    )


def mirrored(clip: TrainingClip) -> TrainingClip:
    """The clip in a mirror, its words too."""
    target = make_target(clip.target.masks.flip(-1).numpy(), clip.target.referred.numpy())
    words = replace(clip.expression, text=mirror_words(clip.expression.text))
    return replace(clip, frames=clip.frames.flip(-1), expression=words, target=target)


def cut(clip: TrainingClip, sides: tuple[int, int], rng: np.random.Generator) -> TrainingClip:
    """A random part of the picture, the same in all frames; its height and width within ``sides`` pixels."""
    height, width = clip.frames.shape[-2:]
    h, w = (int(rng.integers(min(n, sides[0]), min(n, sides[1]) + 1)) for n in (height, width))
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    inside = (..., slice(top, top + h), slice(left, left + w))
    target = make_target(np.ascontiguousarray(clip.target.masks[inside].numpy()), clip.target.referred.numpy())
    return replace(clip, frames=clip.frames[inside], target=target)


def distorted(clip: TrainingClip, rng: np.random.Generator) -> TrainingClip:
    """The clip in other colours, the same in all frames: brightness, contrast, saturation, hue, each with chance 0.5
    (read: ReferFormer, after SSD)."""
    chance = rng.random(4) < 0.5
    brightness, contrast = rng.uniform(-32, 32), rng.uniform(0.5, 1.5)
    saturation, hue = rng.uniform(0.5, 1.5), rng.uniform(-18, 18)
    frames = []
    for frame in clip.frames:
        pixels = frame.permute(1, 2, 0).numpy().astype(np.float32)
        pixels = pixels + brightness if chance[0] else pixels
        pixels = pixels * contrast if chance[1] else pixels
        hsv = cv2.cvtColor(pixels.clip(0, 255).astype(np.uint8), cv2.COLOR_RGB2HSV).astype(np.float32)
        hsv[..., 1] = (hsv[..., 1] * saturation if chance[2] else hsv[..., 1]).clip(0, 255)
        hsv[..., 0] = (hsv[..., 0] + hue / 2) % 180 if chance[3] else hsv[..., 0]  # OpenCV's hue has 180 steps
        frames.append(cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB))
    return replace(clip, frames=torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2))


def shrink(clip: TrainingClip, model: SystemConfig) -> tuple[TrainingClip, tuple[int, int]]:
    """The clip at the size at which it is encoded. Masks are resized to the nearest pixel, as published."""
    h, w = model_size((clip.frames.shape[-2], clip.frames.shape[-1]), model)
    frames = np.stack([resize(frame.permute(1, 2, 0).numpy(), (h, w)) for frame in clip.frames])
    t, n = clip.target.masks.shape[:2]
    masks = np.zeros((t, n, h, w), bool)
    for i, j in np.ndindex(t, n):
        masks[i, j] = cv2.resize(
            clip.target.masks[i, j].numpy().view(np.uint8), (w, h), interpolation=cv2.INTER_NEAREST
        )
    target = make_target(masks, clip.target.referred.numpy())
    return replace(clip, frames=torch.from_numpy(frames).permute(0, 3, 1, 2), target=target), (h, w)


def collate(model: SystemConfig, items: Sequence[tuple[TrainingClip, tuple[int, int]]]) -> Batch:
    """Clips of one length as a batch, padded to the largest."""
    clips, sizes = [clip for clip, _ in items], tuple(size for _, size in items)
    m = model.multiple
    height, width = (-(-max(size[i] for size in sizes) // m) * m for i in (0, 1))
    t = clips[0].frames.shape[0]
    frames = torch.zeros(len(clips), t, 3, height, width)
    padding = torch.ones(len(clips), t, height, width, dtype=torch.bool)
    for i, (clip, (h, w)) in enumerate(items):
        frames[i, :, :, :h, :w] = normalise_pixels(clip.frames, model.mean, model.std)
        padding[i, :, :h, :w] = False
    targets = tuple(replace(c.target, category=c.category) for c in clips)
    return Batch(frames, padding, tuple(c.expression for c in clips), sizes, clips[0].wanted, targets)
