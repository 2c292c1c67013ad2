"""Films from real pictures and clips, with sentences: what the default model learns from, and is measured on.

A film is a pure function of (library, config, seed). Kinds of films: a real still under a moving camera; a composite of
cut-outs on a real picture; twins (one cut-out several times, distinguished by place or motion only); a DAVIS clip, with
or without cut-outs pasted on it. T frames, N objects, H W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from deixis.synthetic.colours import DYES, a_dye, dye
from deixis.synthetic.compositing import (
    Canvas,
    Layer,
    boxes_overlap,
    canvas_of,
    finish_video,
    from_first,
    keep_apart,
    paste,
    scale_for,
    view,
)
from deixis.synthetic.cutouts import (
    HELD_OUT_VIDEOS,
    Library,
    MaskedVideo,
    Patch,
    Picture,
    read_labels,
    read_rgb,
    read_video,
)
from deixis.synthetic.motions import MOTIONS, Motion, a_motion
from deixis.synthetic.scene import Scene, Sentence, SyntheticVideo
from deixis.synthetic.sentences import SentenceMix
from deixis.synthetic.vocabulary import EVERYWHERE, Noun


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """What films a Mixture makes. All numbers are our choice."""

    size: tuple[int, int] = (224, 384)  # H, W in pixels
    frames: int = 3
    stills: float = 0.32  # shares of the kinds of films
    composites: float = 0.34
    twins: float = 0.17
    davis: float = 0.17
    drawn: float = 0.2  # share of cut-outs that are drawings
    same_class: float = 0.35  # chance that a further cut-out has the class of the first
    same_group: float = 0.3  # or that it is of its group (another animal, another vehicle)
    recoloured: float = 0.15  # chance that a cut-out of a composite is dyed in a plain colour
    rows: float = 0.35  # chance that twins stand side by side, all but touching
    camera_moves: float = 0.25  # chance that the camera moves over a composite
    still_camera_moves: float = 0.6  # and over a still
    distractors: float = 0.45  # chance that cut-outs are pasted on a DAVIS clip
    sentences: SentenceMix = field(default_factory=SentenceMix)


# ---- films


class Mixture:
    """Films for training or testing: ``film(seed)`` is the same for the same root, split, config and seed.

    >>> Mixture("../shared/data", split="train", size=(224, 384), frames=3).film(0).sentences   # doctest: +SKIP
    """

    def __init__(
        self, root: Path | str, *, split: str = "train", config: MixtureConfig | None = None, **changes: object
    ) -> None:
        self.config = replace(config or MixtureConfig(), **changes)  # type: ignore[arg-type]
        self.library = Library(root, split)

    def film(self, seed: int) -> SyntheticVideo:
        """The film of a seed, of a kind drawn by the config's shares; retried until it has at least two sentences."""
        c = self.config
        shares = np.array([c.stills, c.composites, c.twins, c.davis])
        rng = np.random.default_rng([seed, 0])
        kind = int(rng.choice(4, p=shares / shares.sum()))
        makers = (self.still, self.composite, self.twin, self.clip)
        film = makers[kind](rng)
        for _ in range(6):
            if len(film.sentences) >= 2:
                break
            film = makers[kind](rng)
        return film

    # ---- choosing

    def _patch(
        self, rng: np.random.Generator, scene: Scene, like: Noun | None, avoid: frozenset[str] = frozenset()
    ) -> Patch:
        c = self.config
        return self.library.any_patch(
            rng,
            scene.open_classes,
            like=like,
            avoid=avoid,
            drawn=c.drawn,
            same_class=c.same_class,
            same_group=c.same_group,
        )

    def _kinds(self, rng: np.random.Generator, count: int) -> list[str]:
        return [MOTIONS[int(rng.choice(4, p=(0.36, 0.40, 0.12, 0.12)))] for _ in range(count)]

    def _place(
        self,
        rng: np.random.Generator,
        patches: list[Patch],
        kinds: list[str],
        share: tuple[float, float] = (0.012, 0.13),
    ) -> list[Motion]:
        """Paths for all patches that keep them mostly apart."""
        placed: list[tuple[Motion, Patch]] = []
        for patch, kind in zip(patches, kinds, strict=True):
            draw = partial(self._path, rng, patch, kind, share)
            placed.append((keep_apart(draw, patch, placed, boxes_overlap, tries=10, enough=0.2), patch))
        return [motion for motion, _ in placed]

    def _path(self, rng: np.random.Generator, patch: Patch, kind: str, share: tuple[float, float]) -> Motion:
        c = self.config
        return a_motion(rng, kind, c.frames, c.size, scale_for(rng, patch, c.size, share))

    def _start(
        self, rng: np.random.Generator, picture: Picture, moves: bool, tight: float
    ) -> tuple[Canvas, Scene, np.ndarray | None]:
        c = self.config
        maps = view(rng, picture.size, c.size, c.frames, moves, tight)
        gain = float(rng.uniform(0.85, 1.12)) if self.library.split == "train" else 1.0
        canvas = canvas_of(self.library, picture, maps, c.size, bool(rng.random() < 0.5), gain)
        scene = Scene((), picture.open_classes, picture.everywhere, fixed=not moves)
        return canvas, scene, from_first(maps) if moves else None

    # ---- kinds of films

    def still(self, rng: np.random.Generator) -> SyntheticVideo:
        """A real picture, nothing pasted, under a camera that may pan and zoom."""
        picture = self.library.any_picture(rng, {"coco_small": 0.6, "voc_animals": 0.36, "weizmann_horses": 0.04})
        moves = bool(rng.random() < self.config.still_camera_moves)
        canvas, scene, _ = self._start(rng, picture, moves, tight=0.72)
        return finish_video(canvas, scene, self.config.sentences, rng, f"still:{picture.image.stem}")

    def composite(self, rng: np.random.Generator, objects: int | None = None) -> SyntheticVideo:
        """1-4 cut-outs on a real picture, each standing still or moving."""
        picture = self.library.background(rng)
        moves = bool(rng.random() < self.config.camera_moves)
        canvas, scene, camera = self._start(rng, picture, moves, tight=0.8)
        count = objects or int(rng.choice([1, 2, 3, 4], p=(0.12, 0.4, 0.32, 0.16)))
        patches: list[Patch] = []
        for _ in range(count):
            patches.append(self._patch(rng, scene, patches[0].noun if patches else None))
        paths = self._place(rng, patches, self._kinds(rng, count))
        dyed = rng.random(count) < self.config.recoloured
        patches = [dye(patch, a_dye(rng)) if dip else patch for patch, dip in zip(patches, dyed, strict=True)]
        for patch, motion in zip(patches, paths, strict=True):
            paste(canvas, patch, motion, camera, float(rng.uniform(0.88, 1.12)), bool(rng.random() < 0.5))
        return finish_video(canvas, scene, self.config.sentences, rng, f"composite:{picture.image.stem}")

    def twin(self, rng: np.random.Generator, by: str | None = None) -> SyntheticVideo:
        """One cut-out two or three times, distinguished by one thing: place, motion or colour (drawn where None)."""
        picture = self.library.background(rng)
        canvas, scene, _ = self._start(rng, picture, False, tight=0.8)
        present = {instance.noun.name for instance in picture.instances}
        patch = self._patch(rng, scene, None, frozenset(present))
        by = by or str(rng.choice(["place", "motion", "colour"], p=[0.45, 0.3, 0.25]))
        count = 2 if by == "motion" or rng.random() < 0.65 else 3
        scale = scale_for(rng, patch, self.config.size, (0.012, 0.09))
        mirrored, gain = bool(rng.random() < 0.5), float(rng.uniform(0.9, 1.1))
        kinds = (
            ["still", "straight"]
            if by == "motion" and rng.random() < 0.5
            else [str(rng.choice(["still", "straight"]))] * count
        )
        heading = float(rng.choice([0, 180, 90, 270]))
        headings = [heading, heading + 180.0] if by == "motion" else [heading] * count
        if by == "motion" and kinds[0] == "still" and kinds[1] == "still":
            kinds = ["straight", "straight"]
        if by != "motion" and rng.random() < self.config.rows:
            paths = self._row(
                rng, patch, a_motion(rng, kinds[0], self.config.frames, self.config.size, scale, heading), count
            )
        else:
            paths = self._apart(rng, patch, scale, kinds, headings)
        dyes = rng.permutation(list(DYES))
        for k, motion in enumerate(paths):
            paste(canvas, dye(patch, str(dyes[k])) if by == "colour" else patch, motion, None, gain, mirrored)
        shares = {"class": 0.1, "colour": 0.1, "place": 0.1, "motion": 0.1, "none": 0.15, "several": 0.05} | {by: 0.6}
        mix = replace(self.config.sentences, weights=tuple(shares.items()))
        film = finish_video(canvas, scene, mix, rng, f"twin_{by}:{picture.image.stem}")
        twins = {i for i, name in enumerate(film.classes) if name == patch.noun.name}
        renamed = tuple(
            replace(s, kind=f"twin_{s.kind}")
            if s.kind == by != "colour" and set(s.objects) <= twins and s.objects
            else s
            for s in film.sentences
        )
        return replace(film, sentences=renamed)

    def _apart(
        self, rng: np.random.Generator, patch: Patch, scale: float, kinds: list[str], headings: list[float]
    ) -> list[Motion]:
        """Paths of one patch, several times, that do not cover each other where that can be had."""
        placed: list[tuple[Motion, Patch]] = []
        for kind, heading in zip(kinds, headings, strict=True):
            draw = partial(self._nearly, rng, scale, kind, heading)
            placed.append((keep_apart(draw, patch, placed, boxes_overlap, tries=14, enough=0.05), patch))
        return [motion for motion, _ in placed]

    def _nearly(self, rng: np.random.Generator, scale: float, kind: str, heading: float) -> Motion:
        near = scale * float(rng.uniform(0.93, 1.07))
        return a_motion(rng, kind, self.config.frames, self.config.size, near, heading)

    def _row(self, rng: np.random.Generator, patch: Patch, motion: Motion, count: int) -> list[Motion]:
        """One patch several times side by side (or one above the other), all but touching, on parallel paths."""
        axis = int(rng.random() < 0.25)
        room = self.config.size[1 - axis]
        side = patch.alpha.shape[1 - axis] * float(motion.scale.max())
        gap = float(rng.uniform(1.0, 1.35))
        shrink = min(1.0, 0.92 * room / (side * gap * count))
        step = side * gap * shrink
        offsets = (np.arange(count) - (count - 1) / 2) * step
        centre = motion.centre.copy()
        reach = offsets[-1] + side * shrink / 2
        low, high = reach - centre[:, axis].min(), room - reach - centre[:, axis].max()
        centre[:, axis] += np.clip(0.0, min(low, high), max(low, high)) if low > 0 or high < 0 else 0.0
        shifts = np.zeros((count, 2))
        shifts[:, axis] = offsets
        return [Motion(centre + shift, motion.scale * shrink, motion.angle) for shift in shifts]

    def clip(self, rng: np.random.Generator, video: MaskedVideo | None = None) -> SyntheticVideo:
        """Frames of a DAVIS video, perhaps with cut-outs pasted over them."""
        video = video or self.library.videos[int(rng.integers(len(self.library.videos)))]
        c = self.config
        total = len(video.frames)
        step = int(rng.integers(1, max(2, min(8, (total - 1) // max(1, c.frames - 1)) + 1)))
        start = int(rng.integers(0, max(1, total - step * (c.frames - 1))))
        indices = [min(total - 1, start + step * k) for k in range(c.frames)]
        canvas = self._filmed(rng, video, indices, tight=0.8)
        scene = Scene((), video.open_classes, EVERYWHERE)
        alien = True
        if rng.random() < c.distractors:
            patches: list[Patch] = []
            like = video.noun if rng.random() < 0.5 else None
            for _ in range(int(rng.integers(1, 3))):
                patches.append(self._patch(rng, scene, like, frozenset({"person"})))
            for patch, motion in zip(
                patches, self._place(rng, patches, self._kinds(rng, len(patches)), (0.01, 0.07)), strict=True
            ):
                paste(
                    canvas, patch, motion, None, float(rng.uniform(0.88, 1.12)), bool(rng.random() < 0.5), known=False
                )
                alien &= not (set(patch.noun.groups) & set(video.noun.groups)) and patch.noun.name != video.noun.name
        written: tuple[Sentence, ...] = ()
        if alien:
            picks = rng.permutation(len(video.written))[:2]
            written = tuple(
                Sentence(video.written[int(i)], "written", (1,)) for i in picks if not _sided(video.written[int(i)])
            )
        return finish_video(canvas, scene, c.sentences, rng, f"davis:{video.name}", written)

    def _filmed(self, rng: np.random.Generator, video: MaskedVideo, indices: list[int], tight: float) -> Canvas:
        """Frames of a video through one window; its object is thing 1, of unknown motion."""
        c = self.config
        h, w = c.size
        first, _ = self.library.frame(video, indices[0])
        maps = view(rng, first.shape[:2], c.size, 1, False, tight)[0]
        mirrored = bool(rng.random() < 0.5) and tight < 1
        frames, labels = np.empty((len(indices), h, w, 3), np.uint8), np.empty((len(indices), h, w), np.uint8)
        whole = np.empty(len(indices))
        for k, i in enumerate(indices):
            rgb, mask = self.library.frame(video, i)
            frames[k] = cv2.warpAffine(rgb, maps, (w, h), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
            labels[k] = cv2.warpAffine(mask.astype(np.uint8), maps, (w, h), flags=cv2.INTER_NEAREST)
            whole[k] = mask.sum() * maps[0, 0] * maps[1, 1]
        if mirrored:
            frames, labels = np.ascontiguousarray(frames[:, :, ::-1]), np.ascontiguousarray(labels[:, :, ::-1])
        path = np.zeros((len(indices), 2))
        ones = np.ones(len(indices))
        return Canvas(frames, labels, [Layer(video.noun, video.alone, path, None, ones, None, whole)])


def _sided(text: str) -> bool:
    """Whether a sentence speaks of left or right (a mirrored clip would make it false)."""
    return any(word in ("left", "right") for word in text.split())


# ---- evaluation sets

_FOUR_KINDS = (("class", 0.22), ("colour", 0.22), ("place", 0.2), ("motion", 0.2), ("none", 0.16))


def composites(
    root: Path | str,
    split: str = "held_out",
    *,
    seed: int = 0,
    films: int = 460,
    objects: tuple[int, int] = (2, 4),
    size: tuple[int, int] = (224, 384),
    frames: int = 8,
) -> Iterator[SyntheticVideo]:
    """Films of ``objects`` (least, most) cut-outs on a real picture; kinds class, colour, place, motion and none."""
    mixture = Mixture(
        root, split=split, size=size, frames=frames, sentences=SentenceMix(count=8, weights=_FOUR_KINDS), recoloured=0.0
    )
    for index in range(films):
        rng = np.random.default_rng([seed, index, 1])
        yield mixture.composite(rng, objects=int(rng.integers(objects[0], objects[1] + 1)))


def stills(root: Path | str, split: str = "held_out", *, seed: int = 0, frames: int = 3) -> Iterator[SyntheticVideo]:
    """Every ``coco_small`` picture with two or more labelled objects and no crowd, nothing pasted, whole, at its own
    size, ``frames`` times; kinds class, colour, place and none."""
    library = Library(root, split)
    weights = (("class", 0.25), ("colour", 0.3), ("place", 0.25), ("none", 0.2))
    identity = np.tile(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), (frames, 1, 1))
    for index, picture in enumerate(library.pictures):
        if picture.set_name != "coco_small" or len(picture.instances) < 2 or library.crowded(picture):
            continue
        rng = np.random.default_rng([seed, index, 2])
        canvas = canvas_of(library, picture, identity, picture.size, False, 1.0)
        scene = Scene((), picture.open_classes, picture.everywhere, fixed=True)
        mix = SentenceMix(count=20, weights=weights)
        film = finish_video(canvas, scene, mix, rng, f"still:{picture.image.stem}", keep=64)
        if film.sentences:
            yield film


def written_stills(root: Path | str, split: str = "development", *, frames: int = 3) -> Iterator[SyntheticVideo]:
    """Every ``coco_small`` picture that expressions were written for, whole, at its own size, ``frames`` times.

    Kinds: "written", and "none" for those that refer to nothing there. Held-out ones come from ``test.json``.
    """
    library, folder = Library(root, split), Path(root) / "sentences"
    written = json.loads((folder / ("test.json" if split == "held_out" else "train.json")).read_text())["coco_small"]
    for picture in library.pictures:
        texts = written.get(f"images/{picture.image.name}") if picture.set_name == "coco_small" else None
        if texts is None:
            continue
        rgb, labels = library.load(picture)
        ids = [instance.id for instance in picture.instances]
        masks = np.stack([labels == i for i in ids])
        sentences = [
            Sentence(text, "written", (ids.index(int(number)),))
            for number, own in texts["objects"].items() if int(number) in ids for text in own
        ]  # fmt: skip
        sentences += [Sentence(text, "none", ()) for text in texts["absent"]]
        yield SyntheticVideo(
            np.repeat(rgb[None], frames, 0), np.repeat(masks[None], frames, 0), tuple(sentences),
            times=tuple(i / 12 for i in range(frames)),
            classes=tuple(instance.noun.name for instance in picture.instances),
            name=f"written:{picture.image.stem}",
        )  # fmt: skip


def twins(
    root: Path | str,
    split: str = "held_out",
    *,
    seed: int = 0,
    films: int = 250,
    size: tuple[int, int] = (224, 384),
    frames: int = 8,
) -> Iterator[SyntheticVideo]:
    """One cut-out two or three times, distinguished by place or by motion; only the sentences that distinguish them."""
    mixture = Mixture(root, split=split, size=size, frames=frames)
    for index in range(films):
        film = mixture.twin(np.random.default_rng([seed, index, 3]), by=("place", "motion")[index % 2])
        entries = tuple(s for s in film.sentences if s.kind.startswith("twin_"))
        if entries:
            yield replace(film, sentences=entries)


def long_films(
    root: Path | str,
    split: str = "held_out",
    *,
    seed: int = 0,
    films: int = 80,
    size: tuple[int, int] = (224, 384),
    frames: int = 60,
) -> Iterator[SyntheticVideo]:
    """Composites and twins of ``frames`` frames (several windows), which show whether a track changes object."""
    mix = SentenceMix(count=6, weights=(("class", 0.3), ("colour", 0.2), ("place", 0.25), ("motion", 0.25)))
    mixture = Mixture(root, split=split, size=size, frames=frames, sentences=mix)
    for index in range(films):
        rng = np.random.default_rng([seed, index, 4])
        film = mixture.twin(rng) if index % 3 == 2 else mixture.composite(rng, objects=int(rng.integers(2, 5)))
        yield replace(film, sentences=tuple(s for s in film.sentences if s.objects))


def davis(root: Path | str, names: tuple[str, ...] = HELD_OUT_VIDEOS) -> Iterator[SyntheticVideo]:
    """Whole DAVIS videos at their own size with the sentences written for them (every second frame, 12 a second)."""
    folder = Path(root) / "davis_train"
    entries = json.loads((folder / "expressions.json").read_text())
    for name in names:
        video = read_video(folder, name, entries[name])
        frames = np.stack([read_rgb(path) for path in video.frames])
        masks = np.stack([read_labels(path) > 0 for path in video.masks])[:, None]
        sentences = tuple(Sentence(text, "written", (0,)) for text in video.written)
        times = tuple(i / 12 for i in range(len(frames)))
        yield SyntheticVideo(frames, masks, sentences, times=times, classes=(video.noun.name,), name=f"davis:{name}")
