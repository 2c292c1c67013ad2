"""Small public models that label pictures (``shared/weights/teachers``): boxes, names, surroundings. None is shipped.

Runtimes: ``pip install ai-edge-litert ncnn``. Boxes are x0, y0, x1, y1 in pixels of the picture.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import ncnn
import numpy as np
from ai_edge_litert.interpreter import Interpreter


class Tflite:
    """A TensorFlow Lite model with one image input of fixed size, uint8."""

    def __init__(self, path: Path) -> None:
        self.net = Interpreter(str(path), num_threads=1)
        self.net.allocate_tensors()
        self.input = self.net.get_input_details()[0]
        self.outputs = self.net.get_output_details()

    def __call__(self, rgb: np.ndarray) -> list[np.ndarray]:
        height, width = self.input["shape"][1:3]
        self.net.set_tensor(self.input["index"], cv2.resize(rgb, (int(width), int(height)))[None])
        self.net.invoke()
        return [self.net.get_tensor(o["index"]) for o in self.outputs]


class Labeler:
    """631 everyday names for a crop: sigmoid probabilities."""

    def __init__(self, folder: Path) -> None:
        self.net = Tflite(folder / "object_labeler.tflite")
        labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
        self.names = [name.lower() for name in labels["google_object_labeler_631"]]

    def __call__(self, rgb: np.ndarray, box: np.ndarray) -> np.ndarray:
        """(631,) probabilities of the box and 8 % around it."""
        height, width = rgb.shape[:2]
        x0, y0, x1, y1 = box
        dx, dy = 0.08 * (x1 - x0), 0.08 * (y1 - y0)
        left, top = max(0, int(x0 - dx)), max(0, int(y0 - dy))
        crop = rgb[top : max(top + 2, min(height, round(y1 + dy))), left : max(left + 2, min(width, round(x1 + dx)))]
        (scores,) = self.net(np.ascontiguousarray(crop))
        scale, zero = self.net.outputs[0]["quantization"]
        return (scores[0].astype(np.float32) - zero) * scale if scale else scores[0].astype(np.float32)


class Localizer:
    """Boxes of things, without names."""

    def __init__(self, folder: Path) -> None:
        self.net = Tflite(folder / "localizer.tflite")

    def __call__(self, rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, 4) boxes and (N,) scores."""
        outputs = self.net(np.ascontiguousarray(rgb))
        boxes = next(o[0] for o in outputs if o.ndim == 3 and o.shape[-1] == 4)
        rows = [o[0] for o in outputs if o.ndim == 2 and o.shape[1] == len(boxes)]
        scores = next(r for r in rows if 0 < r.max() <= 1 and (r != np.round(r)).any())
        height, width = rgb.shape[:2]
        sides = np.array([height, width, height, width])
        return (boxes.clip(0, 1) * sides)[:, [1, 0, 3, 2]], scores


class NanoDet:
    """NanoDet-Plus-m 416: boxes with the 80 COCO names."""

    STRIDES, BINS, SIDE = (8, 16, 32, 64), 8, 416

    def __init__(self, folder: Path) -> None:
        self.net = ncnn.Net()
        self.net.opt.num_threads = 1
        self.net.load_param(str(folder / "nanodet2.param"))
        self.net.load_model(str(folder / "nanodet2.bin"))
        labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
        self.names = [n.lower() for n in next(v for v in labels.values() if len(v) == 80)]

    def __call__(self, rgb: np.ndarray, least: float = 0.15, most: int = 60) -> tuple[np.ndarray, np.ndarray]:
        """(N, 4) boxes and (N, 80) sigmoid scores, after suppression of duplicates at IoU .6."""
        height, width = rgb.shape[:2]
        scale = min(self.SIDE / height, self.SIDE / width)
        size = (round(width * scale), round(height * scale))
        canvas = np.zeros((self.SIDE, self.SIDE, 3), np.float32)
        canvas[: size[1], : size[0]] = cv2.resize(rgb, size)[..., ::-1]
        canvas = (canvas - [103.53, 116.28, 123.675]) / [57.375, 57.12, 58.395]
        pixels = np.ascontiguousarray(canvas.transpose(2, 0, 1), dtype=np.float32)
        extractor = self.net.create_extractor()
        extractor.input("in0", ncnn.Mat(pixels).clone())
        _, found = extractor.extract("out0")
        rows = np.array(found)
        rows = rows.T if rows.shape[0] == 112 else rows  # (3598, 112)
        scores = rows[:, :80]
        if scores.min() < 0 or scores.max() > 1:
            scores = 1 / (1 + np.exp(-scores))
        centres = np.concatenate([self._centres(s) for s in self.STRIDES])
        bins = rows[:, 80:].reshape(-1, 4, self.BINS)
        bins = np.exp(bins - bins.max(-1, keepdims=True))
        distance = (bins / bins.sum(-1, keepdims=True)) @ np.arange(self.BINS) * centres[:, 2:]
        boxes = np.concatenate([centres[:, :2] - distance[:, :2], centres[:, :2] + distance[:, 2:]], axis=1) / scale
        boxes = boxes.clip(0, [width, height, width, height])
        best = scores.max(1)
        order = [i for i in np.argsort(-best)[:400] if best[i] >= least]
        kept: list[int] = []
        for i in order:
            if all(box_overlap(boxes[i], boxes[j]) < 0.6 for j in kept):
                kept.append(i)
        return boxes[kept[:most]], scores[kept[:most]]

    def _centres(self, stride: int) -> np.ndarray:
        cells = np.arange(-(-self.SIDE // stride)) * stride
        y, x = np.meshgrid(cells, cells, indexing="ij")
        return np.stack([x, y, np.full_like(x, stride)], axis=-1).reshape(-1, 3).astype(float)


class Surroundings:
    """MOSAIC: 31 kinds of surroundings (road, sky, grass, water ...); 0 is "other"."""

    def __init__(self, folder: Path) -> None:
        self.net = Tflite(folder / "mosaic.tflite")
        labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
        self.names = [n.lower() for n in next(v for k, v in labels.items() if "mosaic" in k.lower())]

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """(128, 128) uint8 classes over the whole picture, stretched to a square."""
        out = self.net(np.ascontiguousarray(rgb))[0][0]
        classes = out if out.ndim == 2 else out.argmax(-1)
        return cv2.resize(classes.astype(np.uint8), (128, 128), interpolation=cv2.INTER_NEAREST)


def box_overlap(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two boxes."""
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return float(both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both))
