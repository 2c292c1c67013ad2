"""Recipes of the SLVP-style system: pre-training on captioned films and on generated ones, and the transfer to masks.

Nothing but the paper's abstract is public, so every number here is our choice. B clips, T frames, N objects, H W pixels
of a frame, h w cells of a quarter; flow is (dx, dy).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from deixis.config import apply_overrides, config_from
from deixis.encoders.roberta import TextConfig
from deixis.encoders.tokenizers import word_tokenizer
from deixis.encoders.video_swin import VideoSwinConfig
from deixis.losses.pretraining import flow_loss, hide_words, info_nce, masked_words
from deixis.losses.set_loss import MaskLossConfig, mask_loss
from deixis.systems.slvp import PRETRAINING, TRANSFER, Slvp, SlvpConfig
from deixis.training import sources as sources_module
from deixis.training.captions import VideoCaptions
from deixis.training.clips import collate
from deixis.training.distributed import rows_of_all
from deixis.training.flow import FlowCache, find_estimator
from deixis.training.flow_clips import FlowBatch, PretrainData, PretrainLoss, collate_flow, flow_clip, special_tokens
from deixis.training.flow_validation import validate_flow, validate_masks
from deixis.training.optimizer import parameter_groups
from deixis.training.recipes.published import published_clips, published_run
from deixis.training.run import Run, TrainConfig
from deixis.training.small_films import (
    SmallFilms,
    SmallPretrain,
    SmallTransfer,
    small_clip,
    small_film,
    small_flow_clip,
)
from deixis.training.sources import ClipSource, Selecting, SocData
from deixis.training.validation import export_small_films
from deixis.types import Batch, DeixisError
from deixis.weights import misfits, read_header, system_at
from deixis.weights_import import load_kinetics, load_roberta


def pretrain_losses(config: PretrainLoss, system: nn.Module, batch: FlowBatch) -> dict[str, Tensor]:
    """Flow; which sentence belongs to which clip; hidden words. The pixels are fused with the caption without its
    hidden words, so that these cannot be read off them; clips are compared before any fusion with words. Negatives of
    the contrast are the clips and sentences of the same micro-batch in all processes, and the model's queue."""
    model: Any = system
    maps = model.encode(batch.frames, batch.padding)
    tokens, padding = model.text.tokens(batch.captions)
    visible, hidden = tokens, torch.zeros_like(padding)
    if config.words:
        mask_token, special = special_tokens(model, tokens, padding)
        draw = torch.rand(tokens.shape, device="cpu").to(tokens.device)  # the CPU's, so that devices agree
        visible, hidden = hide_words(tokens, special, mask_token, config.hide, draw)
    text = model.text.encode_tokens(visible, padding)
    flow, fused = model.predict_flow(maps, text)
    found = flow[:, : batch.flow.shape[1]]  # the last frame has no successor
    measured = flow_loss(found, batch.flow, batch.valid, config.epsilon, config.gradient, config.moving)
    losses = {"flow": config.flow * measured}
    if config.contrast:
        whole = model.text.encode_tokens(tokens, padding) if config.words else text
        clips, sentences = model.contrast_head(maps, found_everywhere(flow, found), whole.sentence)
        losses["contrast"] = config.contrast * contrast(model, clips, sentences, batch.captions, config.temperature)
    if config.words:
        table = model.text.encoder.embeddings.word_embeddings.weight
        losses["words"] = config.words * masked_words(model.word_head(text.words, fused, table), tokens, hidden)
    return losses


def contrast(model: Any, clips: Tensor, sentences: Tensor, captions: Sequence[str], temperature: float) -> Tensor:
    """(): InfoNCE of unit vectors (B, E) against each other, those of the other processes and those of the queue, which
    then takes in those of all processes. Gradients are of a process's own rows."""
    own = torch.tensor([caption_number(text) for text in captions], device=clips.device)
    gathered = [rows_of_all(rows) for rows in (clips, sentences, own)]
    rank = dist.get_rank() if len(gathered[0]) > 1 else 0
    more = [torch.cat([rows[:0], *(r for i, r in enumerate(rows_of) if i != rank)])
            for rows, rows_of in zip((clips, sentences, own), gathered, strict=True)]  # fmt: skip
    queue = getattr(model, "queue", None)
    if queue is not None:
        more = [torch.cat(pair) for pair in zip(more, queue.kept(), strict=True)]
    same = own[:, None] == torch.cat([own, more[2]])[None]
    loss = info_nce(clips, sentences, same, temperature, (more[0], more[1]))
    if queue is not None and model.training:
        queue.add(*(torch.cat(rows) for rows in gathered))
    return loss


def caption_number(text: str) -> int:
    """The same for the same words, in every process and run."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


def found_everywhere(flow: Tensor, found: Tensor) -> Tensor:
    """The flow with its last frame, which has no successor, moving as the frame before does."""
    return torch.cat([found, found[:, -1:]], dim=1) if found.shape[1] else flow


def pretrain(data: Mapping[str, Path], *, overrides: Mapping[str, str], name: str, model: SlvpConfig) -> Run:
    """Pre-train on any list of (film, caption). data: ``videos``, the CSV; ``flow``, the cache that `deixis data flow`
    fills (what it does not hold is estimated on the way, and kept there); ``kinetics``, a Video Swin checkpoint to
    start the image encoder from; ``roberta`` (default: the hub's roberta-base), a folder for the text encoder.
    """
    if "videos" not in data:
        raise DeixisError(f"the recipe {name} needs --data videos=FILE.csv with the columns film and caption")
    train = TrainConfig(
        steps=100_000, batch=8, global_batch=32, lr=1e-4, warmup_steps=1000, weight_decay=0.05, clip_norm=1.0,
        workers=8, find_unused_parameters=True,
    )  # fmt: skip
    configs = apply_overrides(overrides, model=model, train=train, data=PretrainData())
    made, config = configs["data"], configs["model"]
    if any(side % 4 for side in made.size) or made.frames < 2:
        raise DeixisError(f"data.size must be multiples of 4 and data.frames 2 or more, got {made.size}, {made.frames}")
    if config.head != "flow":
        raise DeixisError("pre-training trains the flow head; leave model.head as it is")
    find_estimator(made.flow.estimator)
    films, cache = VideoCaptions(data["videos"]), FlowCache(data.get("flow"), made.flow)
    return Run(
        name=name,
        system=partial(start_pretraining, config, dict(data)),
        samples=partial(flow_clip, films, cache, config, made, configs["train"].seed),
        collate=partial(collate_flow, config),
        losses=partial(pretrain_losses, made.loss),
        groups=parameter_groups,
        train=configs["train"],
        config=config,
    )


def start_pretraining(config: SlvpConfig, data: Mapping[str, Path]) -> nn.Module:
    """Random weights but for the encoders that were given."""
    model = Slvp(config)
    if "kinetics" in data:
        load_kinetics(model.vision, data["kinetics"])
    if config.text.tokenizer != "letters":
        load_roberta(model.text, str(data.get("roberta", config.text.tokenizer)))
    return model


# --- transfer to masks ------------------------------------------------------------------------------------------------

VISOR = ClipSource(data="visor", benchmark="visor", split="train", how="windows")
SOURCES = (sources_module.REF_YOUTUBE_VOS, VISOR)


@dataclass(frozen=True, kw_only=True)
class TransferData(Selecting):
    """How clips are made of a benchmark's videos."""

    frames: int = 6  # T of a clip
    flip: float = 0.5  # chance of a mirror
    epochs: int = 6
    encoders: float = 0.2  # learning rate of both encoders, as a share of the others'
    loss: MaskLossConfig = field(default_factory=MaskLossConfig)


STILLS_DATA = TransferData(epochs=12)  # RefCOCO, RefCOCO+, RefCOCOg set in motion, before the videos (optional)


def transfer(
    data: Mapping[str, Path],
    *,
    overrides: Mapping[str, str],
    name: str,
    model: SlvpConfig,
    known: Sequence[ClipSource] = SOURCES,
    data_of: TransferData = TransferData(),
) -> Run:
    """Train for masks. data: ``ref-youtube-vos`` and/or ``visor`` (the folder that `deixis data build visor` made), or
    ``refcoco`` for the stage before them;
    ``start``, a pre-trained checkpoint, whose config is then taken; without it, ``kinetics`` and ``roberta`` as in
    pre-training. Ref-DAVIS17 is evaluated with the model of Ref-YouTube-VOS, never trained on.
    """
    if "ref-davis17" in data:
        raise DeixisError(
            "Ref-DAVIS17 is not trained on; train on ref-youtube-vos, then "
            "`deixis predict ref-davis17 FOLDER -o OUT --model MODEL`"
        )
    sources = [source for source in known if source.data in data]
    if not sources:
        wanted = " or ".join(dict.fromkeys(f"--data {source.data}=FOLDER" for source in known))
        raise DeixisError(f"the recipe {name} needs {wanted}; docs/benchmarks.md describes their layouts")
    clips = published_clips(sources, data, overrides, data_of, lambda made: made.frames)
    epoch = max(1, clips.count // 8)
    train = TrainConfig(
        steps=clips.settings.epochs * epoch, batch=1, global_batch=8, lr=5e-5, warmup_steps=100, weight_decay=0.05,
        clip_norm=1.0, workers=4, find_unused_parameters=True,
        validate_every=clips.validate_every(epoch),
    )  # fmt: skip
    configs = apply_overrides(overrides, model=config_of_start(data, model), train=train, data=data_of)
    made, config = configs["data"], configs["model"]
    scales = {"vision.": made.encoders} | ({} if config.text.frozen else {"text.encoder.": made.encoders})
    return published_run(
        name, clips, model=config, train=configs["train"], build=start_transfer, data=data,
        sampling=SocData(frames=made.frames, flip=made.flip), losses=partial(transfer_losses, made.loss),
        groups=partial(parameter_groups, scales=scales),
    )  # fmt: skip


def transfer_losses(config: MaskLossConfig, system: nn.Module, batch: Batch) -> dict[str, Tensor]:
    assert batch.targets is not None
    return mask_loss(system(batch), batch.targets, config)


def config_of_start(data: Mapping[str, Path], model: SlvpConfig) -> SlvpConfig:
    """The config of the checkpoint to start from, with a mask head; ``model`` where none is given."""
    if "start" not in data:
        return model
    facts, _ = read_header(data["start"])
    if facts["system"] != "slvp":
        raise DeixisError(f"{data['start']} holds a system {facts['system']!r}; the transfer starts from slvp")
    return replace(config_from(SlvpConfig, facts["config"], str(data["start"])), head="mask")


def start_transfer(config: SlvpConfig, data: Mapping[str, Path]) -> nn.Module:
    """The system as pre-training left it, with a new head; or, without ``start``, as pre-training would begin."""
    if "start" not in data:
        return start_pretraining(config, data)
    model = Slvp(config)
    adopt(model, data["start"])
    return model


def adopt(model: Slvp, place: Path) -> list[str]:
    """Load all but the head, strictly, from one of our checkpoints; returns the keys that were left behind.

    Left behind are the parts named in ``PRETRAINING``; those of ``TRANSFER`` begin anew if the checkpoint was
    pre-trained on flow. Everything else must be there, and fit: otherwise DeixisError names what does not.
    """
    start: Slvp = system_at(place, Slvp)
    own, found = model.state_dict(), start.state_dict()
    left = [key for key in found if key.startswith(PRETRAINING)]
    new = [key for key in own if key.startswith(TRANSFER)] if start.config.head == "flow" else []
    kept = {key: value for key, value in found.items() if key not in set(left)}
    wrong = misfits({key: value for key, value in own.items() if key not in set(new)}, kept)
    if wrong:
        raise DeixisError(
            f"{place} does not fit this model, at {len(wrong)} tensors: {', '.join(wrong[:5])}; "
            "only the head may differ, so leave the other fields of model as the checkpoint has them"
        )
    model.load_state_dict({**own, **kept})
    return left


SMALL_SLVP = SlvpConfig(
    vision=VideoSwinConfig(dim=24, depths=(1, 1, 2, 1), heads=(1, 2, 4, 8), window=(5, 4, 4), drop_path=0.0),
    text=TextConfig(
        vocabulary=512, width=64, layers=2, heads=4, hidden=128, positions=66, dropout=0.0, frozen=False,
        tokenizer="letters",
    ),
    width=64, heads=4, blocks=1, space=(16, 32), compared=(4, 8), signature=16, queries=5, layers=2, pixel_channels=32,
    norm_groups=8, pixel_groups=4, contrast=64, short_side=48, long_side=80, window=5,
)  # fmt: skip


def pretrain_world(data: Mapping[str, Path], *, overrides: Mapping[str, str], name: str, model: SlvpConfig) -> Run:
    """A small system, pre-trained from scratch on films made as it goes. data: nothing, or ``pictures``, a folder."""
    configs = apply_overrides(
        overrides,
        model=model,
        data=with_pictures(SmallPretrain(), data),
        train=TrainConfig(
            steps=1000, batch=16, lr=1e-3, warmup_steps=50, weight_decay=0.01, log_every=50,
            find_unused_parameters=True,
        ),
    )  # fmt: skip
    made, config = configs["data"], configs["model"]
    return Run(
        name=name,
        system=partial(build_small_slvp, config, made.films, {}),
        samples=partial(small_flow_clip, made, config),
        collate=partial(collate_flow, config),
        losses=partial(pretrain_losses, made.loss),
        groups=parameter_groups,
        validate=partial(validate_flow, made.films),
        train=configs["train"],
        config=config,
    )


def transfer_world(data: Mapping[str, Path], *, overrides: Mapping[str, str], name: str, model: SlvpConfig) -> Run:
    """A small system, trained for the masks of films made as it goes. data: nothing, or ``start``, what
    slvp_pretrain_world left; ``pictures``, a folder."""
    configs = apply_overrides(
        overrides,
        model=config_of_start(data, model),
        data=with_pictures(SmallTransfer(), data),
        train=TrainConfig(
            steps=400, batch=8, lr=1e-3, warmup_steps=40, weight_decay=0.01, log_every=50, find_unused_parameters=True
        ),
    )
    made, config = configs["data"], configs["model"]
    return Run(
        name=name,
        system=partial(build_small_slvp, config, made.films, dict(data)),
        samples=partial(small_clip, made),
        collate=partial(collate, config),
        losses=partial(transfer_losses, made.loss),
        groups=parameter_groups,
        validate=partial(validate_masks, made.films),
        export=partial(export_small_films, made.films),
        train=configs["train"],
        config=config,
    )


def with_pictures(config: Any, data: Mapping[str, Path]) -> Any:
    """The config of small films, set to real pictures where a folder of them is given."""
    if "pictures" not in data:
        return config
    return replace(config, films=replace(config.films, pictures=Path(data["pictures"])))


def build_small_slvp(config: SlvpConfig, films: SmallFilms, data: Mapping[str, Path]) -> nn.Module:
    """As a checkpoint left it, or random weights and a tokenizer of the words of a few hundred films."""
    model = Slvp(config)
    if "start" in data:
        adopt(model, data["start"])
    else:
        texts = [s.text for i in range(min(300, films.count)) for s in small_film(films, "train", i).film.sentences]
        model.text.tokenizer = word_tokenizer(texts, config.text.vocabulary)
    return model


RECIPES: dict[str, Any] = {
    "slvp_pretrain": partial(pretrain, name="slvp_pretrain", model=SlvpConfig(head="flow", queue=1024)),
    "slvp_pretrain_world": partial(pretrain_world, name="slvp_pretrain_world", model=replace(SMALL_SLVP, head="flow")),
    "slvp_refcoco": partial(
        transfer, name="slvp_refcoco", model=SlvpConfig(), known=sources_module.PSEUDO, data_of=STILLS_DATA
    ),
    "slvp_transfer": partial(transfer, name="slvp_transfer", model=SlvpConfig()),
    "slvp_world": partial(transfer_world, name="slvp_world", model=SMALL_SLVP),
}
