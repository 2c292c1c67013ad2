"""Makes the pictures of the pages in this folder: ``python docs/images/make.py [name ...]``, from the clone's root.

segment.jpg: the demo film, segmented by the bundled model.  folder.jpg: a generated film as it lies in a data
folder.  scores.jpg: the picture that ``deixis score`` writes, on a generated benchmark.  data_path.svg: the figure.
demo.jpg: the contact sheet of README.  page.jpg: the page of ``deixis serve``, in Chromium (extras web and browser).
"""

from __future__ import annotations

import html
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
INK, PAPER, EDGE = "#1d2733", "#ffffff", "#5b6b7d"
FILLS = {"noun": "#e4eefb", "file": "#fdf0d5", "disk": "#e7f3e4", "train": "#f8e3ea"}


def deixis(*words: str, folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "deixis.cli", *words], cwd=folder, check=True)


def save(picture: np.ndarray, name: str, width: int, quality: int = 82, most: int = 150_000) -> None:
    """(H, W, 3) RGB at a width, as a JPEG of at most so many bytes."""
    height = round(picture.shape[0] * width / picture.shape[1])
    small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    path = HERE / name
    cv2.imwrite(str(path), small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert path.stat().st_size < most, f"{path} holds {path.stat().st_size} bytes"
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1000} kB")


def write(picture: np.ndarray, text: str, at: tuple[int, int], scale: float = 0.5) -> None:
    cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, (29, 39, 51), 1, cv2.LINE_AA)


def segment() -> None:
    """segment.jpg and, larger, demo.jpg: the contact sheet of the demo film."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place)
        deixis("demo", "-o", "out", folder=out)
        sheet = cv2.imread(str(out / "out/contact_sheet.png"))[..., ::-1]
        save(np.ascontiguousarray(sheet), "segment.jpg", 900)
        save(np.ascontiguousarray(sheet), "demo.jpg", 1280, 85, most=200_000)


def page() -> None:
    """page.jpg: the page with the answer to the demo's sentences, in the middle of the film."""
    from playwright.sync_api import sync_playwright

    sys.path.insert(0, str(ROOT / "tests"))
    from helpers.serving import running

    with tempfile.TemporaryDirectory() as place, running(Path(place), model="light") as server:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=["--headless", "--no-sandbox"])
            seen = browser.new_page(viewport={"width": 1360, "height": 1000})
            seen.set_default_timeout(240_000)
            seen.goto(server.url)
            seen.click("text=Use the demo film")
            seen.wait_for_selector("#film >> text=lucia")
            seen.fill("#sentences textarea", "the woman\nthe bench\na brown dog")
            seen.click("#find")
            seen.wait_for_selector(".dx-result")
            seen.wait_for_function("[...document.querySelectorAll('.dx-pair video')].every(v => v.readyState >= 2)")
            seen.evaluate("document.querySelectorAll('.dx-pair video').forEach(v => { v.currentTime = 1.3 })")
            seen.wait_for_timeout(2000)
            seen.screenshot(path=str(Path(place) / "page.png"), full_page=True)
            browser.close()
        picture = cv2.imread(str(Path(place) / "page.png"))[..., ::-1]
        save(np.ascontiguousarray(picture), "page.jpg", 1160, 80, most=200_000)


def folder() -> None:
    """folder.jpg: three frames of a generated film, their masks, and the lines of the table."""
    from deixis.benchmarks.pngs import davis_palette
    from deixis.synthetic.sentences import SentenceMix
    from deixis.synthetic.world import World
    from deixis.synthetic.world_config import WorldConfig

    film = World("train", WorldConfig(frames=24, flow=False, sentences=SentenceMix(count=6))).film(11)
    palette = np.array(davis_palette(), np.uint8).reshape(256, 3)
    w = film.frames.shape[2]
    times = (0, 10, 20)
    numbers = np.arange(1, film.masks.shape[1] + 1, dtype=np.uint8)[:, None, None]
    rows = [
        np.concatenate([film.frames[t] for t in times], axis=1),
        np.concatenate([palette[(film.masks[t] * numbers).max(0)] for t in times], axis=1),
    ]
    lines = [f"film03,{s.text},{' '.join(str(k + 1) for k in s.objects) or 'none'}" for s in film.sentences]
    label = np.full((26, w * 3, 3), 255, np.uint8)
    table = np.full((30 + 26 * len(lines), w * 3, 3), 255, np.uint8)
    captions = ["films/film03.mp4: frames 0, 10, 20", "masks/film03/00000.png, 00010.png, 00020.png"]
    stack = []
    for caption, row in zip(captions, rows, strict=True):
        strip = label.copy()
        write(strip, caption, (6, 18), 0.55)
        stack += [strip, row]
    write(table, "sentences.csv: film,sentence,objects", (6, 20), 0.55)
    for number, line in enumerate(lines):
        write(table, line, (24, 46 + 26 * number), 0.55)
    save(np.concatenate([*stack, table]), "folder.jpg", 900)


def scores() -> None:
    """scores.jpg: what ``deixis score`` draws."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place)
        deixis("world", "world", "--films", "12", "--frames", "12", folder=out)
        deixis("predict", "world", "world", "-o", "light", "--split", "train", folder=out)
        deixis("score", "world", "world", "light", "--split", "train", folder=out)
        save(np.ascontiguousarray(cv2.imread(str(out / "light/scores.png"))[..., ::-1]), "scores.jpg", 900, 75)


# --- the figure ------------------------------------------------------------------------------------------------------


class Svg:
    """Boxes and arrows with text, in a fixed grid; sizes in pixels."""

    def __init__(self, width: int, height: int) -> None:
        self.size, self.parts = (width, height), [f'<rect width="{width}" height="{height}" fill="{PAPER}"/>']

    def text(self, x: float, y: float, words: str, size: int = 13, style: str = "", anchor: str = "middle") -> None:
        self.parts.append(
            f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{INK}" {style}>'
            f"{html.escape(words)}</text>"
        )

    def box(self, x: int, y: int, w: int, h: int, kind: str, title: str, *lines: str) -> None:
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="7" fill="{FILLS[kind]}" stroke="{EDGE}"/>'
        )
        top = y + h / 2 - 8 * len(lines) + 5
        self.text(x + w / 2, top, title, 14, 'font-weight="bold"')
        for number, line in enumerate(lines):
            self.text(x + w / 2, top + 17 * (number + 1), line, 11)

    def arrow(self, *points: tuple[int, int], words: str = "", at: tuple[int, int] = (0, 0)) -> None:
        path = " ".join(f"{x},{y}" for x, y in points)
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{EDGE}" stroke-width="1.6" marker-end="url(#tip)"/>'
        )
        if words:
            self.text(*at, words, 11, 'font-style="italic"')

    def __str__(self) -> str:
        width, height = self.size
        tip = (
            '<defs><marker id="tip" markerWidth="9" markerHeight="8" refX="8" refY="4" orient="auto">'
            f'<path d="M0,0 L9,4 L0,8 z" fill="{EDGE}"/></marker></defs>'
        )
        body = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'font-family="DejaVu Sans, Verdana, sans-serif">\n{tip}\n{body}\n</svg>\n'
        )


def data_path() -> None:
    """data_path.svg: how a film becomes masks, and where training and scoring leave the path."""
    svg = Svg(1000, 470)
    svg.text(20, 28, "one path: a film and sentences in, mask tracks out", 15, 'font-weight="bold"', "start")
    top, h = 50, 92
    svg.box(20, top, 120, h, "disk", "film", "a file, or a", "folder of frames")
    svg.box(205, top, 130, h, "noun", "Clip", "8 frames, uint8", "(T, 3, H, W)")
    svg.box(410, top, 150, h, "noun", "FeatureMaps", "what the encoder returns;", "knows no words")
    svg.box(640, top, 150, h, "noun", "Prediction", "masks and scores", "of every candidate")
    svg.box(860, top, 120, h, "noun", "MaskTrack", "RLE a frame,", "presence 0..1")
    middle = top + h // 2
    svg.arrow((140, middle), (205, middle), words="video", at=(172, middle - 8))
    svg.arrow((335, middle), (410, middle), words="encode", at=(372, middle - 8))
    svg.arrow((560, middle), (640, middle), words="decode", at=(600, middle - 8))
    svg.arrow((790, middle), (860, middle), words="tracks", at=(825, middle - 8))
    svg.box(525, 200, 150, 62, "noun", "Expressions", "any number of them")
    svg.arrow((600, 200), (600, middle + 6))
    svg.text(372, top + h + 18, "once a window", 11, 'font-style="italic"')
    svg.text(545, 186, "once a sentence", 11, 'font-style="italic"')
    svg.text(920, top + h + 18, "chosen once, at the end", 11, 'font-style="italic"')
    svg.box(860, 200, 120, 62, "disk", "results", "overlay, PNG, RLE")
    svg.arrow((935, top + h + 26), (935, 200), words="writers", at=(962, 188))

    svg.text(20, 318, "training leaves after Prediction", 15, 'font-weight="bold"', "start")
    svg.box(20, 338, 150, 92, "disk", "benchmark", "samples, truth;", "a recipe picks it")
    svg.box(230, 338, 130, 92, "train", "batch", "clips with targets")
    svg.box(420, 338, 110, 92, "train", "losses", "weighted terms")
    svg.box(590, 338, 110, 92, "train", "step", "checkpoint,", "metrics")
    for left, right in ((170, 230), (360, 420), (530, 590)):
        svg.arrow((left, 384), (right, 384))
    svg.arrow((715, top + h), (715, 300), (475, 300), (475, 338))
    svg.text(590, 293, "Prediction of the batch", 11, 'font-style="italic"')

    svg.text(708, 318, "scoring starts from disk", 15, 'font-weight="bold"', "start")
    svg.box(740, 338, 110, 92, "file", "evaluate", "knows no model")
    svg.box(890, 338, 90, 92, "disk", "table", "J&F, P@K,", "intervals")
    svg.arrow((850, 384), (890, 384))
    svg.arrow((920, 262), (920, 326), (795, 326), (795, 338))
    svg.arrow((95, 430), (95, 452), (795, 452), (795, 430))
    svg.text(445, 446, "truth", 11, 'font-style="italic"')
    path = HERE / "data_path.svg"
    path.write_text(str(svg), encoding="utf-8")
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1000} kB")


MAKERS: dict[str, Callable[[], None]] = {
    "segment": segment, "page": page, "folder": folder, "scores": scores, "data_path": data_path,
}  # fmt: skip

if __name__ == "__main__":
    for name in sys.argv[1:] or MAKERS:
        MAKERS[name]()
