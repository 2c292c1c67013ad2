"""Measures of predicted flow and of masks on small held-out videos."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from deixis.metrics.choice import right_object
from deixis.metrics.region_contour import score_frame
from deixis.synthetic.scene import SyntheticVideo
from deixis.training.flow import endpoint_error, median_of
from deixis.training.flow_clips import FlowClip, collate_flow
from deixis.training.measure import tracks_of
from deixis.training.small_films import SmallFilms, length_of, side_by_side, small_film, spread

# --- measures ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def flow_pixels(system: nn.Module, frames: np.ndarray, caption: str) -> np.ndarray:
    """(T-1, H, W, 2) float32 pixels: the flow that a pre-trained system predicts, camera motion not included.

    frames: (T, H, W, 3) uint8, at a size that the system takes.
    """
    model: Any = system
    device = next(model.parameters()).device
    clip = FlowClip(torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2), caption,
                    torch.zeros(0), torch.zeros(0))  # fmt: skip
    batch = collate_flow(model.config, [clip]).to(device)
    flow, _ = model.predict_flow(model.encode(batch.frames, batch.padding), model.text([caption]))
    size = (frames.shape[1], frames.shape[2])
    grown = F.interpolate(flow[0, :-1].float(), size=size, mode="bilinear", align_corners=False)
    return grown.permute(0, 2, 3, 1).cpu().numpy() * model.config.flow_unit * float(np.hypot(*size))


def errors_of(found: np.ndarray, film: SyntheticVideo, valid: np.ndarray) -> dict[str, float]:
    """Mean endpoint errors in pixels over a film, of *raw* flow, the camera's motion included.

    found: (T-1, H, W, 2), camera motion not included; the frame's median is added to it. The same median alone is the
    baseline ``median``; ``zero`` is no motion at all. ``_moving``: over the pixels that move against the median by more
    than half a pixel (nan where there are none).
    """
    assert film.flow is not None
    camera = median_of(film.flow)
    moving = valid & (endpoint_error(film.flow, camera) > 0.5)
    rows: dict[str, float] = {}
    for name, flow in (("found", found + camera), ("median", camera), ("zero", np.zeros_like(camera))):
        error = endpoint_error(np.broadcast_to(flow, film.flow.shape), film.flow)
        rows[name] = float(error[valid].mean()) if valid.any() else float("nan")
        rows[f"{name}_moving"] = float(error[moving].mean()) if moving.any() else float("nan")
    return rows


def validate_flow(films: SmallFilms, system: nn.Module) -> dict[str, float]:
    """On held-out films: mean endpoint errors of ``errors_of``, and first the share by which the median's is cut."""
    rows = []
    for number in range(films.held_out):
        film, valid = side_by_side(
            small_film(films, "valid_u", number), films.frames, (length_of(films) - films.frames) // 2
        )
        rows.append(errors_of(flow_pixels(system, film.frames, film.sentences[0].text), film, valid))
    means = {f"epe_{name}": float(np.nanmean([row[name] for row in rows])) for name in rows[0]}
    return {"gain": 1 - means["epe_found"] / means["epe_median"], **means}


def validate_masks(films: SmallFilms, system: nn.Module) -> dict[str, float]:
    """On held-out films: mean J&F, J, F and share of right objects over all sentences, and J&F by kind."""
    rows = mask_rows(films, system)
    scores = {name: float(np.mean([row[name] for row in rows])) for name in ("jf", "j", "f", "right")}
    kinds = sorted({row["kind"] for row in rows})
    return scores | {f"jf_{k}": float(np.mean([row["jf"] for row in rows if row["kind"] == k])) for k in kinds}


def mask_rows(films: SmallFilms, system: nn.Module) -> list[dict[str, Any]]:
    """A row for each sentence of the held-out films, by ``segment``: film, kind, J, F, J&F, whether it is the right
    object."""
    rows = []
    made = (spread(small_film(films, "valid_u", number), films.slow) for number in range(films.held_out))
    device = str(next(system.parameters()).device)
    for number, film, sentence, track in tracks_of(system, made, precision="fp32", device=device):
        masks, truth = np.asarray(track.masks), np.any(film.masks[:, list(sentence.objects)], axis=1)
        region, contour = np.mean([score_frame(m, t) for m, t in zip(masks, truth, strict=True)], axis=0)
        right, _ = right_object(masks, film.masks, sentence.objects)
        rows.append({"film": number, "kind": sentence.kind, "j": float(region), "f": float(contour),
                     "jf": float((region + contour) / 2), "right": float(right)})  # fmt: skip
    return rows


def flow_picture(flow: np.ndarray, fastest: float) -> np.ndarray:
    """(H, W, 3) uint8: a (H, W, 2) flow in colours; the hue is where it goes, ``fastest`` pixels and more are full."""
    angle = np.degrees(np.arctan2(flow[..., 1], flow[..., 0])) % 360
    speed = np.clip(np.linalg.norm(flow, axis=-1) / max(fastest, 1e-6), 0, 1)
    hsv = np.stack([angle / 2, 255 * speed, np.full_like(angle, 255)], axis=-1)
    return cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
