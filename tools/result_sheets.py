"""Pictures of what the bundled model does on held-out material, right and wrong as they come.

    python tools/result_sheets.py --data ../shared/data --model light -o docs/results

``light_stills_1.jpg`` and ``light_stills_2.jpg``: the first 24 by name of the held-out pictures that have written
sentences and whose licence is Attribution or Attribution-ShareAlike, each with the middle sentence of its first two
objects and one of an absent thing.
``light_films.jpg``: DAVIS ``rhino`` and ``car-turn`` (CC BY 4.0). Green frame: the mask lies over the right thing most
and by more than .1, or is empty where nothing is meant. The credits are printed, as lines for the page.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import nn

import deixis
from deixis.inference import segment
from deixis.metrics.choice import right_object
from deixis.synthetic.cutouts import split_of
from deixis.writers.lettering import legible
from deixis.writers.overlay import tint

FREE = ("Attribution License", "Attribution-ShareAlike License")
TILE, LINES = 250, 44  # width of a tile and height of its text, pixels
GREEN, RED, COLOUR = (40, 160, 60), (210, 50, 40), (255, 60, 160)


def tile(picture: np.ndarray, mask: np.ndarray | None, text: str, right: bool | None, height: int) -> Image.Image:
    """One cell: the picture with its mask, framed, and the sentence below."""
    shown = picture.copy()
    if mask is not None and mask.any():
        tint(shown, mask, COLOUR)
    scale = min(TILE / shown.shape[1], height / shown.shape[0])
    small = Image.fromarray(shown).resize((round(shown.shape[1] * scale), round(shown.shape[0] * scale)))
    cell = Image.new("RGB", (TILE + 8, height + LINES + 8), "white")
    cell.paste(small, (4, 4))
    draw = ImageDraw.Draw(cell)
    if right is not None:
        colour = GREEN if right else RED
        draw.rectangle((1, 1, small.width + 6, small.height + 6), outline=colour, width=3)
    letters, face = legible(text or " ", 0, 12)
    lines: list[str] = []
    line = ""
    for word in letters.split():
        longer = f"{line} {word}".strip()
        if face.getlength(longer) > TILE:
            lines, line = [*lines, line], word
        else:
            line = longer
    for number, written in enumerate([*lines, line][:3]):
        draw.text((4, small.height + 8 + 14 * number), written, fill="black", font=face)
    return cell


def grid(rows: list[list[Image.Image]], path: Path) -> None:
    width = max(sum(cell.width for cell in row) for row in rows)
    sheet = Image.new("RGB", (width, sum(row[0].height for row in rows)), "white")
    y = 0
    for row in rows:
        for column, cell in enumerate(row):
            sheet.paste(cell, (column * cell.width, y))
        y += row[0].height
    sheet.save(path, quality=72, optimize=True)


def answer(picture: np.ndarray, texts: list[str], model: nn.Module) -> list[np.ndarray]:
    """The mask (H, W) of each sentence."""
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(picture).save(Path(folder) / "00000.png")
        return [np.asarray(track.masks[0]) for track in segment(folder, texts, model=model, device="cpu")]


def stills(data: Path, model: nn.Module, out: Path) -> list[str]:
    index = {entry["image"]: entry for entry in json.loads((data / "coco_small/index.json").read_text())["images"]}
    written = json.loads((data / "sentences/test.json").read_text())["coco_small"]
    held_out = [image for image in sorted(index) if split_of("coco_small", image) == "held_out"]
    able = [image for image in held_out if index[image].get("licence") in FREE and image in written]
    rows, credits = [], []
    for image in able[:24]:
        picture = np.array(Image.open(data / "coco_small" / image).convert("RGB"))
        labels = np.array(Image.open(data / "coco_small" / index[image]["mask"]))
        objects = [(int(number), texts[1]) for number, texts in list(written[image]["objects"].items())[:2]]
        meant: list[tuple[int | None, str]] = [*objects, *((None, text) for text in written[image]["absent"][:1])]
        masks = answer(picture, [text for _, text in meant], model)
        numbers = [instance["id"] for instance in index[image]["instances"]]
        credit = f"COCO {Path(image).stem}, {index[image]['licence']}"
        row = [tile(picture, None, credit, None, 180)]
        for (number, text), mask in zip(meant, masks, strict=True):
            if number is None:
                right = not mask.any()
            else:
                truth = np.stack([labels == n for n in numbers])[None]
                right, _ = right_object(mask[None], truth, (numbers.index(number),))
            row.append(tile(picture, mask, text if number is not None else f"(absent) {text}", right, 180))
        rows.append(row)
        credits.append(credit)
    for number in range(2):
        grid(rows[12 * number : 12 * number + 12], out / f"light_stills_{number + 1}.jpg")
    return credits


def films(data: Path, model: nn.Module, out: Path) -> None:
    written = json.loads((data / "sentences/films.json").read_text())
    rows = []
    for name in ("rhino", "car-turn"):
        folder = data / "davis_train" / "JPEGImages" / name
        paths = sorted(folder.glob("*.jpg"))
        some = [round(k * (len(paths) - 1) / 3) for k in range(4)]
        texts = [*written[name]["expressions"][:12:11], written[name]["absent"][0]]
        for number, (text, track) in enumerate(
            zip(texts, segment(folder, texts, model=model, device="cpu"), strict=True)
        ):
            row = []
            for frame in some:
                picture, mask = np.array(Image.open(paths[frame]).convert("RGB")), np.asarray(track.masks[frame])
                truth = np.array(Image.open(data / "davis_train/Annotations" / name / f"{paths[frame].stem}.png")) > 0
                right = not mask.any()
                if number < 2:
                    right = bool((mask & truth).sum() > 0.5 * max(1, (mask | truth).sum()))
                row.append(tile(picture, mask, text if number < 2 else f"(absent) {text}", right, 150))
            rows.append(row)
    grid(rows, out / "light_films.jpg")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--model", default="light")
    options.add_argument("-o", "--out", type=Path, required=True)
    asked = options.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    model = deixis.load(asked.model)
    print("; ".join(stills(asked.data, model, asked.out)))
    films(asked.data, model, asked.out)


if __name__ == "__main__":
    main()
