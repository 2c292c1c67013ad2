"""Encode views of the training pictures once, for the stages ``light_proposals`` and ``light_namer``.

    python tools/remember_views.py --data ../shared/data --weights ../shared/weights -o VIEWS --view 0

View 0 is the whole picture; higher numbers are random crops, the odd ones mirrored. ``--mosaics N`` makes N views of
four training pictures each instead, in which things are small. The short side is what the model
works at, the long one one of five lengths, so that few shapes have to be compiled. One safetensors file a view
(``VIEWS/vN/SET/STEM.safetensors``, about 2.4 MB): the maps of ``FrameFeatures`` in fp16, the pixels, and the affine map
from the picture to the view. Resumable; held-out pictures are never touched.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from deixis.synthetic.cutouts import VIEW_SETS, split_of
from deixis.systems.light import FrameFeatures, Light, LightConfig
from deixis.training.recipes.light import build
from deixis.training.views import Part, save_view, view_of
from deixis.video import normalise_pixels

SETS = (*VIEW_SETS, "coco_minicoco")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--weights", type=Path, required=True)
    options.add_argument("--view", type=int, default=0)
    options.add_argument("--only", default=",".join(SETS))
    options.add_argument("--mosaics", type=int, default=0, help="views of four pictures each, instead")
    options.add_argument("--written", action="store_true", help="only pictures that expressions were written for")
    options.add_argument("-o", "--out", type=Path, required=True)
    asked = options.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    system = build(LightConfig(), {"weights": asked.weights}).eval()
    print(f"OpenVINO {system.accelerate()}", flush=True)
    written = json.loads((asked.data / "sentences" / "train.json").read_text())
    todo = []
    for set_name in asked.only.split(","):
        for entry in json.loads((asked.data / set_name / "index.json").read_text())["images"]:
            image = entry["image"]
            out = asked.out / f"v{asked.view}" / set_name / f"{Path(image).stem}.safetensors"
            wanted = not asked.written or image in written.get(set_name, {})
            if split_of(set_name, image) != "held_out" and wanted and not out.exists():
                size = (entry["height"], entry["width"])
                affine, shape = view_of(size, asked.view, image, system.config.short_side)
                todo.append((shape, set_name, image, affine, out))
    if asked.mosaics:
        mosaics(system, asked)
        return
    began = time.time()
    for done, (shape, set_name, image, affine, out) in enumerate(sorted(todo, key=lambda t: t[0]), 1):
        picture = cv2.imread(str(asked.data / set_name / image))
        assert picture is not None, image
        view = cv2.warpAffine(picture[..., ::-1], affine, shape[::-1], borderMode=cv2.BORDER_REFLECT)
        maps = encoded(system, view)
        whole = (0, 0, *shape)
        save_view(out, maps, view, [Part(set_name, image, affine, whole)])
        if done % 200 == 0:
            print(f"{done} of {len(todo)}, {(time.time() - began) / done:.3f} s each", flush=True)


def encoded(system: Light, view: np.ndarray) -> FrameFeatures:
    """The maps of a view (H, W, 3) uint8."""
    pixels = torch.from_numpy(np.ascontiguousarray(view)).permute(2, 0, 1)[None]
    frames = normalise_pixels(pixels, system.config.mean, system.config.std)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        return system.encode_frames(frames)


def mosaics(system: Light, asked: argparse.Namespace) -> None:
    """Views of four training pictures, one a quarter; half are from ``coco_small``, which is labelled throughout."""
    pictures: dict[bool, list[tuple[str, dict]]] = {True: [], False: []}
    for set_name in asked.only.split(","):
        for entry in json.loads((asked.data / set_name / "index.json").read_text())["images"]:
            if split_of(set_name, entry["image"]) == "train":
                pictures[set_name == "coco_small"].append((set_name, entry))
    began = time.time()
    for number in range(asked.mosaics):
        out = asked.out / "mosaics" / "mosaic" / f"{number:05d}.safetensors"
        if out.exists():
            continue
        rng = np.random.default_rng([99, number])
        short = system.config.short_side
        shape = [(short, round(short * 1.4 / 32) * 32), (short, round(short * 1.8 / 32) * 32)][number % 2]
        tall, wide = shape[0] // 2, shape[1] // 2
        view, parts = np.zeros((*shape, 3), np.uint8), []
        for quarter in range(4):
            several = pictures[bool(rng.random() < 0.5)] or pictures[True] or pictures[False]
            set_name, entry = several[int(rng.integers(len(several)))]
            top, left = quarter // 2 * tall, quarter % 2 * wide
            scale = max(tall / entry["height"], wide / entry["width"]) * rng.uniform(1.0, 1.2)
            spare_y, spare_x = entry["height"] * scale - tall, entry["width"] * scale - wide
            shift_y, shift_x = top - rng.uniform(0, spare_y), left - rng.uniform(0, spare_x)
            affine = np.array([[scale, 0, shift_x], [0, scale, shift_y]])
            if rng.random() < 0.5:
                affine[0] = [-scale, 0, 2 * left + wide - shift_x]
            picture = cv2.imread(str(asked.data / set_name / entry["image"]))
            assert picture is not None, entry["image"]
            rect = (top, left, top + tall, left + wide)
            turned = cv2.warpAffine(picture[..., ::-1], affine, shape[::-1], borderMode=cv2.BORDER_REFLECT)
            view[top : top + tall, left : left + wide] = turned[top : top + tall, left : left + wide]
            parts.append(Part(set_name, entry["image"], affine, rect))
        save_view(out, encoded(system, view), view, parts)
        if (number + 1) % 200 == 0:
            print(f"{number + 1} of {asked.mosaics} mosaics, {time.time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
