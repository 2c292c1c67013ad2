"""Tiny copies of what people download before a command of deixis makes something of it: DAVIS, VISOR, weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deixis import systems, weights_import
from deixis.benchmarks.fixtures import tiny_videos
from deixis.benchmarks.pngs import write_ids
from deixis.benchmarks.ref_davis17 import TEXTS


def write_davis(folder: Path) -> tuple[Path, Path]:
    """DAVIS 2017 Unsupervised of two films, and the four text files: their folders."""
    video, other = tiny_videos(2)
    davis, texts = folder / "DAVIS", folder / "texts"
    for name, content in (("classic-car", video), ("motorbike", other)):
        for kind in ("JPEGImages", "Annotations_unsupervised"):
            (davis / kind / "480p" / name).mkdir(parents=True)
        for t, (frame, ids) in enumerate(zip(content.frames, content.ids, strict=True)):
            Image.fromarray(frame).save(davis / "JPEGImages/480p" / name / f"{t:05d}.jpg")
            write_ids(davis / "Annotations_unsupervised/480p" / name / f"{t:05d}.png", ids)
    (davis / "ImageSets/2017").mkdir(parents=True)
    (davis / "ImageSets/2017/train.txt").write_text("motorbike\n")
    (davis / "ImageSets/2017/val.txt").write_text("classic-car\n")
    texts.mkdir()
    for number, (name, encoding) in enumerate(TEXTS):
        café = "café" if encoding == "latin-1" else "cafe"
        lines = [f'clasic-car {i} "a {café} {i} by {number}"' for i in (2, 1)]
        lines += [f'motor-bike {i} "bike {i} by {number}"' for i in (1, 2)]
        (texts / name).write_text("\n".join(lines) + "\n", encoding=encoding)
    return davis, texts


def write_visor(folder: Path) -> Path:
    """VISOR's sparse annotations of one subsequence, a hand over a plate."""
    frames = []
    for t in range(3):
        name = f"P01_01_frame_{t:010d}.jpg"
        squares = [[[100 + t, 100], [900, 100], [900, 900], [100, 900]]], [[[500, 500], [1500, 500], [1500, 1000]]]
        annotations = [{"name": "plate", "class_id": 2, "segments": squares[0]},
                       {"name": "Left hand", "class_id": 300, "segments": squares[1]}]  # fmt: skip
        image = {"image_path": f"P01_01/{name}", "name": name, "subsequence": "P01_01_seq_00001", "video": "P01_01"}
        frames.append({"image": image, "annotations": annotations})
        pictures = folder / "rgb_frames/val/P01/P01_01"
        pictures.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(pictures / name), np.full((1080, 1920, 3), 90, np.uint8))
    (folder / "annotations/val").mkdir(parents=True)
    (folder / "annotations/train").mkdir()
    (folder / "annotations/val/P01_01.json").write_text(json.dumps({"video_annotations": frames[::-1]}))
    return folder


def small_system(system: str) -> Any:
    """The tiny model of soc or soc_plus_plus, with weights that are always the same."""
    torch.manual_seed(0)
    return systems.PRESETS[f"{system}_debug"]()


def official_state(model: Any, system: str) -> dict[str, Tensor]:
    """A state as the authors' code would save it, from one of our models."""
    state = {}
    for key, value in model.state_dict().items():
        if key.endswith("_extra_state"):
            continue
        name = weights_import.official_name(key, system)
        state[name] = value[:, :, None] if key == "vision.patch_embed.proj.weight" else value
        if name.startswith("bbox_embed"):
            state[f"transformer.decoder.{name}"] = value.clone()
    state["backbone.0.body.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(4, 4, dtype=torch.long)
    state["text_encoder.embeddings.position_ids"] = torch.arange(130)[None]
    return state


def checkpoint(path: Path, state: dict[str, Tensor]) -> Path:
    """A .pth as the authors save it."""
    torch.save(
        {"model_state_dict": state, "epoch": 3, "best_mAP": np.float64(0.5), "optimizer_state_dict": {"state": {}}},
        path,
    )
    return path
