"""Runs our systems on the inputs of a file of reference tensors, and names every result as the file does.

The file's ``meta`` entry states the rest: system, weights' salt, clips, tokens, visible and wanted frames.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deixis.encoders.roberta import TextConfig
from deixis.encoders.video_swin import video_swin_b, video_swin_t
from deixis.losses.set_loss import SetLossConfig, set_loss
from deixis.systems.soc import Soc, SocConfig
from deixis.systems.soc_plus_plus import SocPlusPlus, SocPlusPlusConfig
from deixis.types import Batch, Expression, FeatureMaps, Prediction, Target
from deixis.weights_import import flat_patch, official_name

PUBLISHED = SetLossConfig(invisible="official")
TERMS = {
    "mask_focal": "loss_sigmoid_focal",
    "dice": "loss_dice",
    "contrastive": "loss_con",
    "score": "loss_cls",
    "box_l1": "loss_bbox",
    "box_giou": "loss_giou",
}


class Tokens:
    """Stands for a tokenizer: the texts are token ids already."""

    def no_padding(self) -> None:
        """As the real one; nothing to do."""

    def enable_truncation(self, length: int) -> None:
        """As the real one; nothing to do."""

    def encode_batch(self, texts: list[str]) -> list[Any]:
        return [type("Encoding", (), {"ids": [int(i) for i in text.split()]}) for text in texts]


def read_meta(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return json.loads(str(file["meta"]))


def published_config(meta: dict[str, Any]) -> Any:
    """The config of the file's system, without dropout, with official behaviours."""
    text = meta["text_config"]
    vision = {"video_swin_t": video_swin_t, "video_swin_b": video_swin_b}[meta["vision"]]()
    shared: dict[str, Any] = {
        "vision": replace(vision, drop_path=0.0),
        "text": TextConfig(
            vocabulary=text["vocab_size"], width=text["hidden_size"], layers=text["num_hidden_layers"],
            heads=text["num_attention_heads"], hidden=text["intermediate_size"],
            positions=text["max_position_embeddings"], dropout=text["dropout"], frozen=meta["system"] == "soc",
            tokenizer="letters",
        ),
        "dropout": 0.0,
        "kept_queries": 20,
    }  # fmt: skip
    if meta["system"] == "soc":
        return SocConfig(eval_level="official", **shared)
    return SocPlusPlusConfig(score_order="official", proxy_key="official", **shared)


def build(meta: dict[str, Any]) -> Any:
    """The system of the file with its weights filled from their official names."""
    config = published_config(meta)
    model: Any = Soc(config) if meta["system"] == "soc" else SocPlusPlus(config)
    fill(model, meta["system"], meta["salt"])
    model.text.tokenizer = Tokens()
    return model


def fill(model: nn.Module, system: str, salt: str) -> None:
    """Weights as functions of their official names, so that none need be stored."""
    state = model.state_dict()
    for key in [k for k in state if not k.endswith("_extra_state")]:
        name, shape = official_name(key, system), tuple(state[key].shape)
        if key == "vision.patch_embed.proj.weight":
            shape = (*shape[:2], 1, *shape[2:])
        noise = np.random.RandomState(zlib.crc32((salt + name).encode())).standard_normal(shape)
        if len(shape) >= 2:
            noise = noise / np.sqrt(np.prod(shape[1:]))
        elif name.endswith("weight"):
            noise = 1 + 0.05 * noise
        else:
            noise = 0.05 * noise
        state[key] = flat_patch(torch.from_numpy(noise.astype(np.float32)))
    model.load_state_dict(state)


def make_batch(clip: dict[str, Any]) -> Batch:
    """The inputs of a case, padded to the largest of its clips."""
    seeds = clip.get("frames_seeds", [clip.get("frames_seed")])
    shapes = clip.get("frames_shapes", [clip.get("frames_shape")])
    films = [
        np.random.RandomState(s).standard_normal(shape).astype(np.float32)
        for s, shape in zip(seeds, shapes, strict=True)
    ]
    height, width = max(s[2] for s in shapes), max(s[3] for s in shapes)
    frames = torch.zeros(len(films), shapes[0][0], 3, height, width)
    padding = torch.ones(len(films), shapes[0][0], height, width, dtype=torch.bool)
    for i, film in enumerate(films):
        h, w = film.shape[-2:]
        frames[i, :, :, :h, :w] = torch.from_numpy(film)
        padding[i, :, :h, :w] = False
    wanted = tuple(clip["wanted"][:1]) if clip["mode"] == "wanted" else None
    expressions = tuple(Expression(tokens) for tokens in clip["tokens"])
    targets = (make_target(clip["visible"], height, width),) if "visible" in clip else None
    return Batch(frames, padding, expressions, tuple((s[2], s[3]) for s in shapes), wanted, targets)


def make_target(visible: list[int], height: int, width: int) -> Target:
    """The moving rectangle that the file's ``targets`` describe in words."""
    masks = torch.zeros(len(visible), 1, height, width, dtype=torch.bool)
    boxes = torch.zeros(len(visible), 1, 4)
    for t, seen in enumerate(visible):
        if seen:
            masks[t, 0, 20 + 4 * t : 60 + 4 * t, 30:80] = True
            boxes[t, 0] = torch.tensor([55 / width, (40 + 4 * t) / height, 50 / width, 40 / height])
    return Target(masks, boxes, torch.tensor(visible, dtype=torch.bool)[:, None], torch.ones(1, dtype=torch.bool))


def run_case(model: Any, clip: dict[str, Any], name: str) -> dict[str, Tensor]:
    """Everything the file may hold of a case: "<name>/eval/...", "/train/...", "/train/aux0/...", "/loss/..."."""
    batch = make_batch(clip)
    results: dict[str, Tensor] = {}
    with torch.no_grad():
        seen, answer = record_parts(model.eval(), batch, clip.get("wanted", ()))
    results |= {f"{name}/eval/{k}": v for k, v in (named_outputs(answer) | inner_tensors(seen, batch)).items()}
    if clip["mode"] != "clip":
        return results
    model.train()
    model.zero_grad()
    seen, answer = record_parts(model, batch)
    if isinstance(model, SocPlusPlus):  # officially all levels are clustered in evaluation too; only one is used
        results[f"{name}/eval/video_queries"] = torch.stack([c.detach() for c in seen["cluster"][0]])
    for prefix, level in {"train": answer, **{f"train/aux{i}": aux for i, aux in enumerate(answer.aux)}}.items():
        results |= {f"{name}/{prefix}/{k}": v.detach() for k, v in named_outputs(level).items()}
    if batch.targets is None:
        return results
    terms = set_loss(answer, batch.targets, PUBLISHED)
    total = torch.stack(list(terms.values())).sum()
    total.backward()
    gradients = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    results |= {f"{name}/loss/total": total.detach(), f"{name}/loss/gradnorm": torch.stack(gradients).norm()}
    for key, value in terms.items():
        term, _, level = key.rpartition("_") if key[-1].isdigit() and key not in TERMS else (key, "", "")
        official = TERMS[term] + (f"_{level}" if level else "")
        results[f"{name}/loss/{official}"] = value.detach() / getattr(PUBLISHED, term)
    return results


def record_parts(model: Any, batch: Batch, wanted: Sequence[int] = ()) -> tuple[dict[str, list[Any]], Prediction]:
    """The prediction, and what the parts returned on the way to it. wanted: one frame a clip, which may differ."""
    seen: dict[str, list[Any]] = {name: [] for name in ("transformer", "cluster", "pixel_decoder", "text")}

    def keep(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: seen[name].append(output)

    hooks = [getattr(model, name).register_forward_hook(keep(name)) for name in seen]
    answer = (
        model(batch) if len(set(wanted)) < 2 else model.decode(encode_each(model, batch, wanted), batch.expressions)
    )
    for hook in hooks:
        hook.remove()
    return seen, answer


def encode_each(model: Any, batch: Batch, wanted: Sequence[int]) -> FeatureMaps:
    """The maps of a batch whose clips want different frames."""
    parts = [model.encode(batch.frames[i : i + 1], batch.padding[i : i + 1], (w,)) for i, w in enumerate(wanted)]
    levels = tuple(torch.cat(level) for level in zip(*(p.levels for p in parts), strict=True))
    return FeatureMaps(levels, parts[0].strides, torch.cat([p.padding for p in parts]), parts[0].size)


def named_outputs(p: Prediction) -> dict[str, Tensor]:
    """Official names and axis order (time first) of a prediction."""
    assert p.boxes is not None
    return {
        "pred_masks": p.masks.transpose(0, 1),
        "pred_cls": p.scores.transpose(0, 1)[..., None],
        "pred_boxes": p.boxes.transpose(0, 1),
        "pred_logit": p.extras["clip_queries"],
        "text_sentence_feature": p.extras["sentence"],
    }


def inner_tensors(seen: dict[str, list[Any]], batch: Batch) -> dict[str, Tensor]:
    """Official names of what the parts returned, for one clip; frames may have come in several parts."""
    if len(batch.frames) > 1:
        return {}

    def over_time(values: Callable[[Any], Any]) -> Tensor:
        return torch.cat([values(part) for part in seen["transformer"]], dim=0)

    layers = range(len(seen["transformer"][0].queries))
    clips = seen["cluster"][0]
    return {
        "frame_queries": torch.stack([over_time(lambda f, i=i: f.queries[i]) for i in layers]),
        "init_ref": over_time(lambda f: f.references[0]),
        "refs": torch.stack([over_time(lambda f, i=i: f.boxes[i]) for i in layers]),
        "mem8": over_time(lambda f: f.memory[0])[:, :8],
        "mem16": over_time(lambda f: f.memory[1])[:, :8],
        "mem32": over_time(lambda f: f.memory[2]),
        "mask_feats": torch.cat(seen["pixel_decoder"], dim=0),
        "video_queries": clips[None] if isinstance(clips, Tensor) else torch.stack(list(clips)),
        "text_tokens": seen["text"][0].words.transpose(0, 1),
        "sentence": seen["text"][0].sentence,
    }
