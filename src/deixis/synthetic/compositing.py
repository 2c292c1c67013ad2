"""Painting films: cut-outs on paths over a picture, with exact visible masks and the facts that predicates need.

T frames, N things, H W pixels. Coordinates are pixels, x right, y down; maps are (T, 2, 3) affine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from deixis.synthetic.colours import colour_shares
from deixis.synthetic.cutouts import Library, Patch, Picture
from deixis.synthetic.motions import Motion, Moving
from deixis.synthetic.predicates import THRESHOLDS, Predicates, Thresholds
from deixis.synthetic.scene import Scene, Sentence, SyntheticVideo, Thing
from deixis.synthetic.sentences import SentenceMix, SentenceSampler
from deixis.synthetic.vocabulary import Noun

MAX_OBJECTS = 16  # objects whose masks a film keeps; the sentences are about all of them


@dataclass(frozen=True, eq=False)
class Layer:
    """What is known of one thing of a film while it is painted.

    path, world: (T, 2) pixels, in the picture and with the camera's motion taken out (None: not known).
    scale, world_scale: (T,) relative to the first frame.  whole: (T,) pixels that it would cover, unhidden and uncut.
    inside: (T,) share of it within the picture, or None.  affine: (T, 2, 3) from its own first picture to frame t.
    """

    noun: Noun
    single: bool
    path: np.ndarray
    world: np.ndarray | None
    scale: np.ndarray
    world_scale: np.ndarray | None
    whole: np.ndarray
    inside: np.ndarray | None = None
    affine: np.ndarray | None = None
    texture: str = ""


@dataclass(eq=False)
class Canvas:
    """A film while it is painted.

    frames: (T, H, W, 3) uint8.  labels: (T, H, W) uint8, index of a thing + 1; 0 nothing, 255 unknown.
    hidden: (i, j) -> the largest share of thing i that thing j hides in a frame.
    """

    frames: np.ndarray
    labels: np.ndarray
    layers: list[Layer] = field(default_factory=list)
    hidden: dict[tuple[int, int], float] = field(default_factory=dict)


def view(
    rng: np.random.Generator, source: tuple[int, int], size: tuple[int, int], frames: int, moves: bool, tight: float
) -> np.ndarray:
    """Affine maps (T, 2, 3) from a source picture to the film: a window inside the picture that may pan and zoom.

    tight: the smallest window, as a share of the largest that fits. The picture is stretched by 15 % at most.
    """
    height, width = source
    aspect = size[1] / size[0]
    stretch = float(np.clip((width / height) / aspect, 1 / 1.15, 1.15))
    aspect *= stretch
    w_max = min(width, height * aspect)

    def window() -> np.ndarray:
        w = w_max * rng.uniform(tight, 1.0)
        h = w / aspect
        return np.array([rng.uniform(0, width - w), rng.uniform(0, height - h), w, h])

    first = window()
    last = first
    if moves:
        goal = window()
        last = first + (goal - first) * rng.uniform(0.2, 0.8)
    s = np.linspace(0, 1, frames)[:, None]
    x, y, w, h = (first + (last - first) * s).T
    maps = np.zeros((frames, 2, 3))
    maps[:, 0, 0], maps[:, 1, 1] = size[1] / w, size[0] / h
    maps[:, 0, 2], maps[:, 1, 2] = -x * size[1] / w, -y * size[0] / h
    return maps


def apply_maps(maps: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(T, 2, 3) maps on (2,) or (T, 2) points: (T, 2)."""
    points = np.broadcast_to(points, (len(maps), 2))
    return np.einsum("tij,tj->ti", maps[:, :, :2], points) + maps[:, :, 2]


def canvas_of(
    library: Library, picture: Picture, maps: np.ndarray, size: tuple[int, int], mirrored: bool, gain: float
) -> Canvas:
    """A picture, warped by the maps, as the start of a film; its labelled objects are the first things."""
    rgb, ids = library.load(picture)
    lut = np.zeros(256, dtype=np.uint8)
    lut[255] = 255
    for index, instance in enumerate(picture.instances[:250]):
        lut[instance.id] = index + 1
    labels = lut[ids]
    if mirrored:
        rgb, labels = np.ascontiguousarray(rgb[:, ::-1]), np.ascontiguousarray(labels[:, ::-1])
    if gain != 1.0:
        rgb = cv2.convertScaleAbs(rgb, alpha=gain)
    t, (h, w) = len(maps), size
    frames, painted = np.empty((t, h, w, 3), np.uint8), np.empty((t, h, w), np.uint8)
    for i in range(t):
        if i and np.array_equal(maps[i], maps[0]):
            frames[i], painted[i] = frames[0], painted[0]
            continue
        shrink = maps[i, 0, 0] < 0.7
        frames[i] = cv2.warpAffine(
            rgb, maps[i], (w, h), flags=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )
        painted[i] = cv2.warpAffine(labels, maps[i], (w, h), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT)
    canvas = Canvas(frames, painted)
    scale = np.sqrt(maps[:, 0, 0] * maps[:, 1, 1])
    for instance in picture.instances[:250]:
        x, y, bw, bh = instance.box
        middle = np.array([x + bw / 2, y + bh / 2])
        if mirrored:
            middle[0] = picture.size[1] - middle[0]
        path = apply_maps(maps, middle)
        world = np.broadcast_to(path[0], path.shape)
        whole = instance.area * maps[:, 0, 0] * maps[:, 1, 1]
        canvas.layers.append(
            Layer(instance.noun, instance.single, path, world, scale / scale[0], np.ones(t), whole, affine=maps)
        )
    return canvas


def paste(
    canvas: Canvas,
    patch: Patch,
    motion: Motion,
    camera: np.ndarray | None,
    gain: float,
    mirrored: bool,
    known: bool = True,
    texture: str = "",
) -> None:
    """Paint a cut-out over the film. camera: (T, 2, 3) from the first frame to frame t, or None where it stands still.
    known: whether the motion against the world is known (it is not over a filmed clip)."""
    t, h, w = canvas.labels.shape
    rgb, alpha = patch.rgb, patch.alpha
    if mirrored:
        rgb, alpha = rgb[:, ::-1], alpha[:, ::-1]
    if gain != 1.0:
        rgb = cv2.convertScaleAbs(np.ascontiguousarray(rgb), alpha=gain)
    ph, pw = alpha.shape
    four = np.ascontiguousarray(np.dstack([rgb, alpha]))
    path, scale, angle = motion.centre, motion.scale, motion.angle
    if camera is not None:
        path = apply_maps(camera, path)
        scale = scale * np.sqrt(camera[:, 0, 0] * camera[:, 1, 1])
    label = len(canvas.layers) + 1
    solid = float((patch.alpha > 127).sum())
    inside, affine = np.zeros(t), np.zeros((t, 2, 3))
    for i in range(t):
        affine[i] = cv2.getRotationMatrix2D((pw / 2, ph / 2), float(angle[i]), float(scale[i]))
        affine[i, :, 2] += path[i] - np.array([pw / 2, ph / 2])
        reach = 0.5 * np.hypot(ph, pw) * scale[i] + 2
        x0, y0 = max(0, int(path[i, 0] - reach)), max(0, int(path[i, 1] - reach))
        x1, y1 = min(w, int(path[i, 0] + reach) + 1), min(h, int(path[i, 1] + reach) + 1)
        if x1 <= x0 or y1 <= y0:
            continue
        matrix = affine[i] - np.array([[0, 0, x0], [0, 0, y0]])
        source = four
        if scale[i] < 0.5:  # shrink smoothly first: a bilinear warp would skip pixels
            small = (max(2, round(pw * scale[i] * 1.4)), max(2, round(ph * scale[i] * 1.4)))
            source = cv2.resize(four, small, interpolation=cv2.INTER_AREA)
            matrix = matrix @ _shrunk(pw / small[0], ph / small[1])
        warped = cv2.warpAffine(
            source, matrix, (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT
        )
        share = warped[..., 3:].astype(np.uint16)
        region = canvas.frames[i, y0:y1, x0:x1]
        region[:] = ((warped[..., :3] * share + region * (255 - share)) // 255).astype(np.uint8)
        painted = warped[..., 3] > 127
        under = canvas.labels[i, y0:y1, x0:x1]
        inside[i] = min(1.0, painted.sum() / max(1.0, solid * scale[i] ** 2))
        for other, pixels in enumerate(np.bincount(under[painted], minlength=label)[1:label]):
            if pixels:
                share_hidden = float(pixels / max(1.0, canvas.layers[other].whole[i]))
                canvas.hidden[other, label - 1] = max(canvas.hidden.get((other, label - 1), 0.0), share_hidden)
        under[painted] = label
    canvas.layers.append(
        Layer(
            patch.noun, True, path, motion.centre if known else None, scale / scale[0],
            motion.scale / motion.scale[0] if known else None, solid * scale**2,
            inside if camera is None else None, affine, texture,
        )
    )  # fmt: skip


def _shrunk(x: float, y: float) -> np.ndarray:
    """(3, 3): from the pixels of a picture shrunk by x and y to its own (pixel centres at whole numbers)."""
    return np.array([[x, 0.0, 0.5 * x - 0.5], [0.0, y, 0.5 * y - 0.5], [0.0, 0.0, 1.0]])


def things_of(canvas: Canvas, visible: float) -> tuple[list[Thing], list[int], np.ndarray]:
    """The visible things, which label each has, and the (C,) colours of everything else."""
    t, h, w = canvas.labels.shape
    count, diagonal = len(canvas.layers), float(np.hypot(h, w))
    xs, ys = np.tile((np.arange(w) + 0.5) / w, h), np.repeat((np.arange(h) + 0.5) / h, w)
    flat = canvas.labels.reshape(t, -1)
    number = np.stack([np.bincount(row, minlength=256) for row in flat])[:, 1 : count + 1].astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        x = np.stack([np.bincount(row, xs, minlength=256) for row in flat])[:, 1 : count + 1] / number
        y = np.stack([np.bincount(row, ys, minlength=256) for row in flat])[:, 1 : count + 1] / number
    things, labels = [], []
    for i in range(count):
        if not number[:, i].any():
            continue
        best = int(np.argmax(number[:, i]))
        certain, perhaps = colour_shares(canvas.frames[best][canvas.labels[best] == i + 1])
        layer = canvas.layers[i]
        shown = number[:, i] / np.maximum(layer.whole, 1)
        things.append(
            Thing(
                layer.noun, number[:, i] / (h * w), np.stack([x[:, i], y[:, i]], axis=1), layer.path / diagonal,
                None if layer.world is None else layer.world / diagonal, layer.scale, layer.world_scale,
                certain, perhaps,
                layer.single, bool((shown > 0.35).mean() >= visible), layer.inside, layer.texture,
            )
        )  # fmt: skip
        labels.append(i + 1)
    _, background = colour_shares(canvas.frames[0][canvas.labels[0] == 0])
    return things, labels, background


def keep_apart(
    draw: Callable[[], Motion],
    patch: Patch,
    placed: Sequence[Moving],
    overlap: Callable[[Moving, Moving], float],
    tries: int,
    enough: float,
) -> Motion:
    """The first path drawn that overlaps those placed by less than ``enough`` (0..1), or the best of ``tries``."""
    best, least = None, 9.0
    for _ in range(tries):
        motion = draw()
        worst = max([overlap((motion, patch), other) for other in placed], default=0.0)
        if worst < least:
            best, least = motion, worst
        if worst < enough:
            break
    assert best is not None
    return best


def boxes_overlap(a: Moving, b: Moving) -> float:
    """The largest share of the smaller box that the other covers, at the start and the end."""
    worst = 0.0
    for i in (0, len(a[0].centre) // 2, -1):
        sides = [np.array(p.alpha.shape[::-1]) * m.scale[i] for m, p in (a, b)]
        gap = np.minimum(a[0].centre[i] + sides[0] / 2, b[0].centre[i] + sides[1] / 2) - np.maximum(
            a[0].centre[i] - sides[0] / 2, b[0].centre[i] - sides[1] / 2
        )
        if (gap > 0).all():
            worst = max(worst, float(gap.prod() / min(sides[0].prod(), sides[1].prod())))
    return worst


def scale_for(
    rng: np.random.Generator, patch: Patch, size: tuple[int, int], share: tuple[float, float] = (0.012, 0.13)
) -> float:
    """Pixels of the film per pixel of the patch, so that the object covers a share of the picture; at most 3."""
    wanted = float(np.exp(rng.uniform(*np.log(share)))) * size[0] * size[1]
    scale = np.sqrt(wanted / max(1, int((patch.alpha > 127).sum())))
    fits = 0.85 * min(size[0] / patch.alpha.shape[0], size[1] / patch.alpha.shape[1])
    return float(min(scale, 3.0, fits))


def from_first(maps: np.ndarray) -> np.ndarray:
    """Maps (T, 2, 3) from the film's first frame to frame t, of maps from a source picture to frame t (no rotation)."""
    out = np.zeros_like(maps)
    ratio = np.stack([maps[:, 0, 0] / maps[0, 0, 0], maps[:, 1, 1] / maps[0, 1, 1]], axis=1)
    out[:, 0, 0], out[:, 1, 1] = ratio[:, 0], ratio[:, 1]
    out[:, :, 2] = maps[:, :, 2] - ratio * maps[0, :, 2]
    return out


# ---- sentences


def finish_video(
    canvas: Canvas,
    scene_of: Scene,
    mix: SentenceMix,
    rng: np.random.Generator,
    name: str,
    written: tuple[Sentence, ...] = (),
    keep: int = MAX_OBJECTS,
    thresholds: Thresholds = THRESHOLDS,
) -> SyntheticVideo:
    """Draw the sentences and keep the masks of the objects that they name, then of the largest others."""
    things, labels, background = things_of(canvas, thresholds.visible)
    hidden = np.array([[canvas.hidden.get((i - 1, j - 1), 0.0) for j in labels] for i in labels])
    scene = replace(scene_of, things=tuple(things), background=background, hidden=hidden)
    judge = Predicates(scene, thresholds)
    weights = dict(mix.weights)
    drawn = SentenceSampler(judge, rng, motions=weights.get("motion", 0) > 0, times=weights.get("time", 0) > 0).draw(
        mix
    )
    known = {label: i for i, label in enumerate(labels)}
    kept = [
        replace(s, objects=tuple(known[label] for label in s.objects))
        for s in written
        if all(x in known for x in s.objects)
    ]
    kept = [s for s in kept if all(judge.referable[i] for i in s.objects)]
    sentences = (*drawn[: mix.count - len(kept)], *kept) if kept else drawn
    named = {i for s in sentences for i in s.objects}
    largest = sorted(range(len(things)), key=lambda i: -float(things[i].area.max()))
    order = sorted([*named, *[i for i in largest if i not in named][: max(0, keep - len(named))]])
    place = {i: k for k, i in enumerate(order)}
    masks = (
        np.stack([canvas.labels == labels[i] for i in order], axis=1)
        if order
        else np.zeros((len(canvas.frames), 0, *canvas.labels.shape[1:]), bool)
    )
    return SyntheticVideo(
        frames=canvas.frames,
        masks=masks,
        sentences=tuple(replace(s, objects=tuple(place[i] for i in s.objects)) for s in sentences),
        ignore=canvas.labels == 255,
        times=tuple(i / 6 for i in range(len(canvas.frames))),
        classes=tuple(things[i].noun.name for i in order),
        name=name,
    )
