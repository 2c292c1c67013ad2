"""Write the tokens that the scorer of light learns from (``deixis train light_scorer``).

    python tools/make_tokens.py pictures --model NAMER.safetensors --features VIEWS --objects OBJECTS --data SETS -o OUT
    python tools/make_tokens.py davis    --model NAMER.safetensors --data SETS -o OUT
    python tools/make_tokens.py stills   --model NAMER.safetensors --data SETS -o OUT --from 0 --films 2000
    python tools/make_tokens.py films    --model NAMER.safetensors --data SETS -o OUT --from 0 --films 2000
    python tools/make_tokens.py pasted   --model NAMER.safetensors --data SETS -o OUT --from 0 --films 4000
    python tools/make_tokens.py typed    --model NAMER.safetensors --data SETS -o OUT --films 2000

``pictures``: every remembered view with written expressions, twice: with the model's own proposals and with the true
masks as tracks. ``stills``: crops of real pictures with generated sentences. ``davis``: clips of the DAVIS films with
the expressions of ``films.json``. ``films``: rendered films with generated sentences. ``pasted``: single
frames with cut-outs, many of them twins: places are learned from these. ``typed``: cut-outs of
``object_photos`` on real pictures with the phrases that people typed to single one out. Resumable; a file that is cut
off is made anew.
Development pictures and films go to OUT/development, the others to OUT/train; held-out ones are never touched.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

import deixis
from deixis.inference import model_size
from deixis.synthetic.cutouts import split_of
from deixis.synthetic.mixture import Mixture
from deixis.synthetic.sentences import SentenceMix
from deixis.systems.light import Light
from deixis.training.token_batches import sides_exchanged
from deixis.training.tokens import Said, Tokens, clip_tokens, read_tokens, save_tokens
from deixis.training.view_batches import encoded as encoded_views
from deixis.training.views import PictureViews, View, Views
from deixis.types import DeixisError
from deixis.video import normalise_pixels

KEPT = 0.6  # share of a thing that a view must show for what was written of it to be used


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("kind", choices=tuple(KINDS))
    options.add_argument("--model", required=True, help="a checkpoint of light")
    options.add_argument("--data", type=Path, required=True, help="the folder of the sets (shared/data)")
    options.add_argument("--features", type=Path)
    options.add_argument("--objects", type=Path)
    options.add_argument("-o", "--out", type=Path, required=True)
    options.add_argument("--true-masks-only", action="store_true", help="of pictures: leave the proposals out")
    options.add_argument("--from", dest="first", type=int, default=0)
    options.add_argument("--films", type=int, default=2000)
    options.add_argument("--views", default="0,1,2", help="without --features: these views of every picture, encoded")
    options.add_argument("--device", default="cpu")
    options.add_argument("--parts", default="development,train", help="which splits")
    options.add_argument("--share", default="0/1", help="I/N: the Ith of N processes that make the tokens together")
    asked = options.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    system = deixis.load(asked.model).eval().to(asked.device)
    assert isinstance(system, Light)
    if asked.device == "cpu":
        system.accelerate()
    began = time.time()
    for done, _ in enumerate(KINDS[asked.kind](system, asked), 1):
        if done % 200 == 0:
            print(f"{done} clips, {(time.time() - began) / done:.3f} s each", flush=True)


def whole(path: Path) -> bool:
    """Whether a token file is there and can be read."""
    try:
        read_tokens(path)
    except DeixisError:
        return False
    return True


def mine(asked: argparse.Namespace, number: int) -> bool:
    """Whether an item falls to this process."""
    own, of = (int(n) for n in asked.share.split("/"))
    return number % of == own


def pictures(system: Light, asked: argparse.Namespace):  # type: ignore[no-untyped-def]
    written = json.loads((asked.data / "sentences" / "train.json").read_text())
    for part in asked.parts.split(","):
        several: list[Views] = []
        if asked.features:
            several.append(Views(asked.features, asked.objects, asked.data, part, tuple(written)))
        else:
            short = system.config.short_side
            numbers = [int(n) for n in asked.views.split(",")]
            of_pictures = partial(PictureViews, asked.objects, asked.data, part, tuple(written), short=short)
            several += [of_pictures(number=n) for n in numbers]
        for views in several:
            yield from pictures_of(system, asked, views, part, written)


def pictures_of(system: Light, asked: argparse.Namespace, views: Views, part: str, written: dict):  # type: ignore[no-untyped-def]
    for index, path in enumerate(views.items):
        kind, set_name = views.place(index)
        image = f"images/{path.stem}.jpg"
        if image not in written[set_name] or not mine(asked, index):
            continue
        view: View | None = None
        for own in (True,) if asked.true_masks_only else (False, True):
            place = asked.out / part / f"{kind}{'_true' if own else ''}" / set_name / f"{path.stem}.safetensors"
            if whole(place):
                continue
            if view is None:
                view = views[index]
                sentences = of_view(view, written[set_name][image])
                with torch.no_grad(), torch.autocast(asked.device, dtype=torch.bfloat16):
                    frames, features = encoded_views(system, [view])
                truth = torch.from_numpy(view.masks).to(frames.device).float()[None] / 255
            with torch.autocast(asked.device, dtype=torch.bfloat16):
                tokens = clip_tokens(system, features, frames, truth, sentences, view.name, own_masks=own)
            save_tokens(place, tokens)
        yield path


def of_view(view: View, written: dict) -> list[Said]:
    """What was written of a picture, as far as the view shows it; in a mirrored view left and right are exchanged."""
    turn = sides_exchanged if view.mirrored else str
    place = {found["id"]: i for i, found in enumerate(view.objects) if found["id"] is not None}
    said = []
    for number, texts in written["objects"].items():
        index = place.get(int(number))
        if index is not None and view.shown[index] >= KEPT:
            said += [Said(turn(text), "written", (index,)) for text in texts]
    return said + [Said(turn(text), "none", ()) for text in written["absent"]]


CLIPS = ((0.0, 1), (0.3, 2), (0.0, 4), (0.5, 1), (0.2, 3), (0.1, 1))  # (where it begins, frames between frames)


def davis(system: Light, asked: argparse.Namespace):  # type: ignore[no-untyped-def]
    folder = asked.data / "davis_train"
    for name, written in json.loads((asked.data / "sentences" / "films.json").read_text()).items():
        part = split_of("davis_train", name)
        paths = sorted((folder / "JPEGImages" / name).glob("*.jpg"))
        if part not in asked.parts.split(","):
            continue
        for number, (start, step) in enumerate(CLIPS):
            below = "davis" if part == "development" else "v_davis"
            place = asked.out / part / below / name / f"{number}.safetensors"
            if not mine(asked, number) or whole(place):
                continue
            first, step = int(start * len(paths)), min(step, max(1, (len(paths) - 1) // 7))
            chosen = [paths[min(first + k * step, len(paths) - 1)] for k in range(8)]
            mirror = number % 2 == 1
            frames, masks = [], []
            for path in chosen:
                mask = cv2.imread(str(folder / "Annotations" / name / f"{path.stem}.png"), cv2.IMREAD_UNCHANGED) > 0
                rgb = cv2.imread(str(path))[..., ::-1]
                size = model_size(rgb.shape[:2], system.config)
                size = tuple(round(n / 32) * 32 for n in size)
                turn = (lambda x: x[:, ::-1]) if mirror else (lambda x: x)
                frames.append(cv2.resize(np.ascontiguousarray(turn(rgb)), size[::-1], interpolation=cv2.INTER_AREA))
                masks.append(cv2.resize(np.ascontiguousarray(turn(mask)).astype(np.float32), size[::-1]))
            sided = set(written.get("sided", [])) if mirror else set()
            said = [Said(text, "written", (0,)) for text in written["expressions"] if text not in sided]
            said += [Said(text, "none", ()) for text in written["absent"]]
            save_tokens(place, encoded(system, np.stack(frames), np.stack(masks)[:, None], said, f"davis:{name}"))
            yield place


def encoded(
    system: Light, frames: np.ndarray, masks: np.ndarray, said: list[Said], name: str, own: bool = False
) -> Tokens:
    """Tokens of frames (T, H, W, 3) uint8 with masks (T, N, H, W) 0..1. own: the masks themselves are the tracks."""
    device = next(system.parameters()).device
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    normalised = normalise_pixels(pixels, system.config.mean, system.config.std).to(device)
    with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16):
        features = system.encode_frames(normalised)
        truth = torch.from_numpy(np.ascontiguousarray(masks)).to(device).float()
        return clip_tokens(system, features, normalised, truth, said, name, own_masks=own)


def films(system: Light, asked: argparse.Namespace):  # type: ignore[no-untyped-def]
    shapes = [((320, 576), 5), ((320, 448), 4), ((320, 576), 8), ((320, 448), 3), ((448, 320), 4)]
    return rendered(system, asked, "films", shapes, 7_000_000_000, SentenceMix(count=24))


# Nothing moves in a still, and places are learned last: other weights than those of films (our choice).
STILL_SENTENCES = SentenceMix(
    count=24, most_none=0.12, repeats=5,
    weights=(("class", 0.25), ("colour", 0.35), ("place", 0.7), ("motion", 0.0), ("none", 0.08), ("size", 0.12),
             ("several", 0.04)),
)  # fmt: skip


def stills(system: Light, asked: argparse.Namespace):  # type: ignore[no-untyped-def]
    shapes = [((320, 448), 1), ((320, 384), 1), ((448, 320), 1)]
    return rendered(
        system, asked, "stills", shapes, 8_000_000_000, STILL_SENTENCES, true_too=True,
        stills=1, composites=0, twins=0, davis=0,
    )  # fmt: skip


def pasted(system: Light, asked: argparse.Namespace):  # type: ignore[no-untyped-def]
    shapes = [((320, 448), 1), ((320, 576), 1), ((448, 320), 1)]
    return rendered(
        system, asked, "pasted", shapes, 9_000_000_000, STILL_SENTENCES, stills=0, composites=1, twins=1, davis=0
    )


DEVELOPMENT_FILMS = 80


def rendered(  # type: ignore[no-untyped-def]
    system: Light, asked: argparse.Namespace, kind: str, shapes: list, base: int, mix: SentenceMix, *,
    true_too: bool = False, **shares: float,
):  # fmt: skip
    """The films of the seeds base + number; those of the development split come first, with seeds below ``base``.

    true_too: also with the true masks as tracks, beside the others.
    """
    mixtures: dict[tuple, Mixture] = {}
    numbers = [("development", n) for n in range(DEVELOPMENT_FILMS)]
    numbers += [("train", n) for n in range(asked.first, asked.first + asked.films)]
    for part, number in numbers:
        if part not in asked.parts.split(",") or not mine(asked, number):
            continue
        folders = {own: asked.out / part / f"{kind}{'_true' * own}" for own in range(1 + true_too)}
        file = f"{number // 1000:03d}/{number:06d}.safetensors"
        if all(whole(folder / file) for folder in folders.values()):
            continue
        size, frames = shapes[number % len(shapes)]
        key = (part, size, frames)
        if key not in mixtures:
            mixtures[key] = Mixture(asked.data, split=part, size=size, frames=frames,
                                    sentences=mix, **shares)  # fmt: skip
        film = mixtures[key].film(base + number - (0 if part == "train" else 10_000))
        said = [Said(s.text, s.kind, tuple(s.objects)) for s in film.sentences]
        for own, folder in folders.items():
            save_tokens(folder / file, encoded(system, film.frames, film.masks, said, film.name, bool(own)))
        yield folders[0] / file


# ---- typed phrases


def typed(system: Light, asked: argparse.Namespace):  # type: ignore[no-untyped-def]
    if "train" not in asked.parts.split(","):
        return
    images = [e["image"] for e in json.loads((asked.data / "backgrounds" / "index.json").read_text())["images"]]
    backgrounds = [asked.data / "backgrounds" / i for i in images if split_of("backgrounds", i) == "train"]
    scenes = typed_scenes(asked.data / "object_photos")
    for number in range(asked.first, asked.first + asked.films):
        if not mine(asked, number):
            continue
        place = asked.out / "train" / "typed" / f"{number // 1000:03d}" / f"{number:06d}.safetensors"
        if whole(place):
            continue
        rng = np.random.default_rng([number, 31])
        scene = scenes[int(rng.integers(len(scenes)))]
        frame = background(backgrounds[int(rng.integers(len(backgrounds)))], rng)
        masks = paste_scene(frame, asked.data / "object_photos", scene, rng)
        texts = [scene.texts[i] for i in rng.permutation(len(scene.texts))[:12]]
        said = [Said(text, "typed", (0,)) for text in texts]
        for i in rng.permutation(len(scenes))[:40]:
            if len(said) < len(texts) + 4 and not scene.may_be(scenes[int(i)].names[0]):
                said.append(Said(f"the {scenes[int(i)].names[0]}", "none", ()))
        save_tokens(place, encoded(system, frame[None].astype(np.uint8), masks[None], said, f"typed:{number}"))
        yield place


@dataclass(frozen=True)
class TypedScene:
    """items: (image, "small", "big" or ""), the target first.  names: of their objects.  texts: phrases for the target,
    each once."""

    items: tuple[tuple[str, str], ...]
    names: tuple[str, ...]
    texts: tuple[str, ...]

    def may_be(self, name: str) -> bool:
        """Whether one of the things may be called by that name: it has a word of it, or people used one."""
        words = {word for text in (*self.texts, *self.names) for word in text.split()}
        return bool(words & set(name.split()))


def typed_scenes(folder: Path) -> list[TypedScene]:
    """The scenes of ``expressions.json`` that single out one thing and touch no held-out picture."""
    names = {e["image"]: e["class"] for e in json.loads((folder / "index.json").read_text())["images"]}
    texts: dict[tuple[tuple[str, str], ...], dict[str, None]] = {}
    for row in json.loads((folder / "expressions.json").read_text())["expressions"]:
        items = [(i["image"], i.get("size", "")) for i in (row["target"], *row["distractors"])]
        if items[0] in items[1:] or any(split_of("object_photos", image) != "train" for image, _ in items):
            continue
        if not items[0][1] and items[0][0] in [image for image, _ in items[1:]]:
            continue  # nothing tells the target apart
        texts.setdefault((items[0], *sorted(items[1:])), {})[row["expression"]] = None
    return [TypedScene(i, tuple(names[image] for image, _ in i), tuple(t)) for i, t in sorted(texts.items())]


TYPED_SIZE = (320, 448)


def background(path: Path, rng: np.random.Generator) -> np.ndarray:
    """A random part of a picture without a main thing, (H, W, 3) float 0..255."""
    rgb = np.array(Image.open(path).convert("RGB"))
    height, width = TYPED_SIZE
    scale = max(height / rgb.shape[0], width / rgb.shape[1]) * rng.uniform(1.0, 1.6)
    shape = [max(n, round(side * scale)) for n, side in zip(TYPED_SIZE, rgb.shape, strict=False)]
    rgb = cv2.resize(rgb, shape[::-1], interpolation=cv2.INTER_AREA)
    top, left = (int(rng.integers(side - n + 1)) for side, n in zip(shape, TYPED_SIZE, strict=True))
    part = rgb[top : top + height, left : left + width]
    return (part[:, ::-1] if rng.random() < 0.5 else part).astype(np.float32)


def paste_scene(frame: np.ndarray, folder: Path, scene: TypedScene, rng: np.random.Generator) -> np.ndarray:
    """Paste the scene's things on a frame, each in a cell of a grid. Returns their masks (N, H, W) 0..1."""
    size = TYPED_SIZE
    columns = 3 if len(scene.items) > 2 else 2
    rows = 2 if len(scene.items) > columns else 1
    cells = rng.permutation(columns * rows)
    tall, wide = size[0] / rows, size[1] / columns
    masks = np.zeros((len(scene.items), *size), np.float32)
    share = rng.uniform(0.55, 0.95)  # of a cell that a thing fills
    for number, ((image, how_big), cell) in enumerate(zip(scene.items, cells, strict=False)):
        cut = np.array(Image.open(folder / image).convert("RGBA")).astype(np.float32)
        part = share * rng.uniform(0.8, 1.0) * {"small": 0.5, "big": 1.0, "": 1.0}[how_big]
        scale = min(tall * part / cut.shape[0], wide * part / cut.shape[1])
        shape = [max(4, round(n * scale)) for n in cut.shape[:2]]
        cut = cv2.resize(cut, shape[::-1], interpolation=cv2.INTER_AREA)
        top = int((cell // columns) * tall + rng.uniform(0, tall - shape[0]))
        left = int((cell % columns) * wide + rng.uniform(0, wide - shape[1]))
        where = (slice(top, top + shape[0]), slice(left, left + shape[1]))
        alpha = cut[..., 3] / 255
        masks[number][where] = alpha
        frame[where] = frame[where] * (1 - alpha[..., None]) + cut[..., :3] * alpha[..., None]
    return masks


KINDS = {"pictures": pictures, "davis": davis, "stills": stills, "films": films, "pasted": pasted, "typed": typed}


if __name__ == "__main__":
    main()
