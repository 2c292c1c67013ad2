"""Checkpoints of others, read strictly: the authors' SOC and SOC++ files, Kinetics Video Swin, RoBERTa.

Keys are renamed by the tables below; what is left out is listed with its reason; everything else must fit, key by key
and shape by shape. Pickles are opened with PyTorch's weights-only reader and never otherwise.
"""

from __future__ import annotations

import re
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, get_args, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn
from transformers import RobertaModel

from deixis.encoders.roberta import TextEncoder, roberta_tokenizer
from deixis.encoders.video_swin import VideoSwin, VideoSwinConfig, video_swin_b, video_swin_t
from deixis.systems.soc import Soc, SocConfig
from deixis.systems.soc_plus_plus import SocPlusPlus, SocPlusPlusConfig
from deixis.types import DeixisError

# (official key, our key): "#" stands for a number, "*" for the rest, in the same order on both sides. First match wins.
Rows = tuple[tuple[str, str], ...]
_SWIN_KEYS: Rows = (
    ("patch_embed.*", "patch_embed.*"),
    ("layers.#.blocks.#.mlp.fc1.*", "layers.#.#.mlp.0.*"),
    ("layers.#.blocks.#.mlp.fc2.*", "layers.#.#.mlp.2.*"),
    ("layers.#.blocks.#.*", "layers.#.#.*"),
)
_SOC_KEYS: Rows = (
    *((f"backbone.0.body.{official}", f"vision.{ours}") for official, ours in _SWIN_KEYS),
    ("backbone.0.body.downsamples.#.*", "vision.merge.#.*"),
    ("input_proj.#.0.*", "project.conv.#.*"),
    ("input_proj.#.1.*", "project.norm.#.*"),
    ("text_encoder.*", "text.encoder.*"),
    ("txt_proj.fc.*", "text.project.0.*"),
    ("txt_proj.layer_norm.*", "text.project.1.*"),
    ("vlf.multihead_attn.*", "vision_gate.attention.*"),
    ("lvf.multihead_attn.*", "text_gate.attention.*"),
    ("query_embed.weight", "transformer.query_position"),
    ("transformer.level_embed", "transformer.level_embed"),
    ("transformer.reference_points.*", "transformer.reference.*"),
    ("transformer.encoder.layers.#.self_attn.*", "transformer.encoder.#.attention.*"),
    ("transformer.encoder.layers.#.norm1.*", "transformer.encoder.#.norm.*"),
    ("transformer.encoder.layers.#.linear#.*", "transformer.encoder.#.feed_forward.linear#.*"),
    ("transformer.encoder.layers.#.norm2.*", "transformer.encoder.#.feed_forward.norm.*"),
    ("transformer.decoder.layers.#.cross_attn.*", "transformer.decoder.#.cross_attention.*"),
    ("transformer.decoder.layers.#.norm1.*", "transformer.decoder.#.cross_norm.*"),
    ("transformer.decoder.layers.#.self_attn.*", "transformer.decoder.#.self_attention.*"),
    ("transformer.decoder.layers.#.norm2.*", "transformer.decoder.#.self_norm.*"),
    ("transformer.decoder.layers.#.linear#.*", "transformer.decoder.#.feed_forward.linear#.*"),
    ("transformer.decoder.layers.#.norm3.*", "transformer.decoder.#.feed_forward.norm.*"),
    ("class_embed.#.*", "heads.score.#.*"),
    ("bbox_embed.#.*", "heads.box.#.*"),
    ("controller.*", "heads.kernel.*"),
    ("spatial_decoder.lay1.*", "pixel_decoder.start.conv.*"),
    ("spatial_decoder.gn1.*", "pixel_decoder.start.norm.*"),
    *((f"spatial_decoder.lay{i + 2}.*", f"pixel_decoder.steps.{i}.conv.*") for i in range(4)),
    *((f"spatial_decoder.gn{i + 2}.*", f"pixel_decoder.steps.{i}.norm.*") for i in range(4)),
    *((f"spatial_decoder.adapter{i + 1}.*", f"pixel_decoder.laterals.{i}.*") for i in range(2)),
    ("spatial_decoder.adapter3.*", "pixel_decoder.fine.*"),
    ("spatial_decoder.out_lay.*", "pixel_decoder.out.*"),
    ("voc.enc_self_attn.#.self_attn.*", "cluster.encoder.attention.#.attention.*"),
    ("voc.enc_self_attn.#.norm.*", "cluster.encoder.attention.#.norm.*"),
    ("voc.enc_ffn.#.*", "cluster.encoder.feed_forward.#.*"),
    ("voc.transformer_cross_attention_layers.#.multihead_attn.*", "cluster.decoder.cross_attention.#.attention.*"),
    ("voc.transformer_cross_attention_layers.#.norm.*", "cluster.decoder.cross_attention.#.norm.*"),
    ("voc.transformer_self_attention_layers.#.self_attn.*", "cluster.decoder.self_attention.#.attention.*"),
    ("voc.transformer_self_attention_layers.#.norm.*", "cluster.decoder.self_attention.#.norm.*"),
    ("voc.transformer_ffn_layers.#.*", "cluster.decoder.feed_forward.#.*"),
    ("voc.decoder_norm.*", "cluster.decoder.norm.*"),
    ("voc.fq_pos.weight", "cluster.decoder.slot_position"),
    ("voc.query_embed.weight", "cluster.decoder.query_position"),
)
_SOC_PLUS_PLUS_KEYS: Rows = (
    ("proxy_embed.weight", "proxies"),
    ("v2p.multihead_attn.*", "proxy_gate.attention.*"),
    ("query_fusion.multihead_attn.*", "to_frames.attention.*"),
    ("query_fusion.norm.*", "to_frames.norm.*"),
    ("voc.enc_self_attn.#.multihead_attn.*", "cluster.encoder.attention.#.attention.*"),
    ("voc.video_query_embed.weight", "cluster.start"),
    ("voc.score_embd.0.*", "cluster.presence.mix.*"),
    ("voc.score_embd.1.*", "cluster.presence.out.*"),
    ("voc.diff_embd.0.*", "cluster.change.mix.*"),
    ("voc.diff_embd.1.*", "cluster.change.out.*"),
    *_SOC_KEYS,
)
TABLES: dict[str, Rows] = {"soc": _SOC_KEYS, "soc_plus_plus": _SOC_PLUS_PLUS_KEYS}
KINETICS_KEYS: Rows = (*_SWIN_KEYS, ("layers.#.downsample.*", "merge.#.*"))

# (official key, why it is left out).
_CONSTANT = ("*relative_position_index", "a constant, computed from the window's size")
_LEFT_OUT: Rows = (
    _CONSTANT,
    ("text_encoder.embeddings.position_ids", "a constant of older transformers releases"),
    ("transformer.decoder.bbox_embed.*", "a second copy of bbox_embed, checked to be equal"),
    ("*total_ops", "left by a profiler"),
    ("*total_params", "left by a profiler"),
)
_KINETICS_LEFT_OUT: Rows = (
    _CONSTANT,
    ("norm.*", "the norm before the classifier; features are taken before it"),
    ("cls_head.*", "the classifier of actions"),
)
_COPIES: Rows = (("transformer.decoder.bbox_embed.*", "bbox_embed.*"),)
# What PyTorch's reader raises on bytes that are no weights, beside UnpicklingError.
_GARBAGE = (
    RuntimeError, OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, AssertionError, struct.error,
    zipfile.BadZipFile,
)  # fmt: skip
_MOST_CLASSES = 1000  # our choice
_LARGEST_VIEW = 1 << 20  # numbers of a tensor that shows fewer again and again (our choice: masks, counts of places)
_LARGEST_FILE = 8 << 30  # bytes (our choice: the published files with optimiser states stay below 3 GB)


@dataclass(frozen=True, eq=False)
class Imported:
    """A system with the file's weights, and the keys left out with the reason for each."""

    system: nn.Module
    left_out: dict[str, str]


# Fields of a config that may differ from what a checkpoint was made with: they change its use, not its weights.
USES: dict[str, Callable[[str], Any]] = {
    "eval_level": str, "score_order": str, "proxy_key": str, "kept_queries": int, "frames_at_once": int,
    "short_side": int, "long_side": int, "window": int,
}  # fmt: skip


def import_checkpoint(
    path: Path, system: str, *, tokenizer: str | None = None, settings: Mapping[str, str] | None = None
) -> Imported:
    """The authors' checkpoint ``path`` (.pth) of "soc" or "soc_plus_plus", with the official behaviours on.

    T or B and the number of classes are read from shapes. tokenizer: a folder or hub name, to be put into the model;
    without it, the model looks for roberta-base's when it encodes its first text.  settings: fields of USES to their
    values as text, such as {"short_side": "320"} for a checkpoint trained on A2D.
    Raises DeixisError for a file that is missing, cut off, not weights, or whose keys or shapes do not all fit.
    """
    if system not in TABLES:
        raise DeixisError(f"unknown system {system!r}; authors' checkpoints are read for {', '.join(TABLES)}")
    official = read_state(path)
    model = build_for(official, system, path)
    model.config = with_settings(model.config, settings or {})
    if tokenizer is not None:
        config = replace(model.config.text, tokenizer=tokenizer)
        model.config = replace(model.config, text=config)
        model.text.config = config
        model.text.tokenizer = roberta_tokenizer(config)
    state, left_out = rename_keys(official, system, path)
    load_strictly(model, state, path)
    return Imported(model.eval(), left_out)


def with_settings(config: Any, settings: Mapping[str, str]) -> Any:
    """The config with the fields named, values given as text. Raises DeixisError for what is no such field or value."""
    known = [name for name in USES if hasattr(config, name)]
    for name, text in settings.items():
        if name not in known:
            raise DeixisError(f"{name!r} cannot be set on import; known: {', '.join(known)}")
        allowed = get_args(get_type_hints(type(config))[name])  # of a Literal
        if allowed and text not in allowed:
            raise DeixisError(f"{name} must be one of {', '.join(allowed)}, got {text!r}")
        try:
            config = replace(config, **{name: USES[name](text)})
        except ValueError as error:
            raise DeixisError(f"{name} must be a whole number, got {text!r}") from error
    return config


def build_for(official: Mapping[str, Tensor], system: str, path: Path) -> Any:
    """The system, with random weights, whose sizes fit the official state; official behaviours on."""
    try:
        patch, classes = official["backbone.0.body.patch_embed.proj.weight"], official["class_embed.0.weight"]
        words = official["text_encoder.embeddings.word_embeddings.weight"].shape
    except KeyError as error:
        raise DeixisError(f"{path} holds no {system} checkpoint: the key {error} is missing") from error
    if patch.ndim not in (4, 5) or classes.ndim != 2 or not 1 <= len(classes) <= _MOST_CLASSES:
        shapes = f"{tuple(patch.shape)} and {tuple(classes.shape)}"
        raise DeixisError(f"{path} holds no {system} checkpoint: its patch and class layers are {shapes}")
    dim = len(patch)
    sizes: dict[int, Callable[[], VideoSwinConfig]] = {96: video_swin_t, 128: video_swin_b}
    if dim not in sizes:
        raise DeixisError(f"{path}: a backbone {dim} channels wide is neither Video Swin T (96) nor B (128)")
    if tuple(words) != (50265, 768):
        raise DeixisError(f"{path}: its word table is {tuple(words)}, but roberta-base's is (50265, 768)")
    is_newer = "proxy_embed.weight" in official
    if is_newer != (system == "soc_plus_plus"):
        raise DeixisError(f"{path} is a checkpoint of {'soc_plus_plus' if is_newer else 'soc'}, not of {system}")
    numbers = {"vision": sizes[dim](), "classes": len(classes)}
    if system == "soc":
        return Soc(SocConfig(eval_level="official", **numbers))  # type: ignore[arg-type]
    return SocPlusPlus(SocPlusPlusConfig(score_order="official", proxy_key="official", **numbers))  # type: ignore[arg-type]


def rename_keys(
    official: Mapping[str, Tensor], system: str, path: Path, *, check_copies: bool = True
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(our state, what is left out and why) of an official state.

    Raises DeixisError for a key that no table has, and, with check_copies, for a copy that is none.
    """
    state: dict[str, Tensor] = {}
    left_out: dict[str, str] = {}
    unknown = []
    for key, value in official.items():
        reason = match_key(key, _LEFT_OUT)
        if reason is not None:
            left_out[key] = reason
            if check_copies:
                _check_copy(key, official, path)
            continue
        ours = match_key(key, TABLES[system])
        if ours is None:
            unknown.append(key)
        else:
            state[ours] = flat_patch(value) if ours == "vision.patch_embed.proj.weight" else value
    _refuse_unknown(path, unknown, system)
    return state, left_out


def _refuse_unknown(path: Path, unknown: Sequence[str], model: str) -> None:
    if unknown:
        raise DeixisError(f"{path}: {len(unknown)} keys are unknown to {model}: {', '.join(sorted(unknown)[:3])}")


def match_key(key: str, rows: Rows) -> str | None:
    """What the first row whose left side is the whole key makes of it; None where no row does."""
    for left, right in rows:
        form = re.escape(left).replace("\\#", r"(\d+)").replace("#", r"(\d+)").replace("\\*", "(.+)")
        found = re.fullmatch(form, key)
        if found:
            values = iter(found.groups())
            return re.sub(r"[#*]", lambda _, values=values: next(values), right)  # type: ignore[misc]
    return None


def official_name(key: str, system: str) -> str:
    """The authors' name of one of our keys; KeyError for a key that is none of theirs."""
    name = match_key(key, tuple((ours, official) for official, ours in TABLES[system]))
    if name is None:
        raise KeyError(key)
    return name


def flat_patch(weight: Tensor) -> Tensor:
    """(C, 3, 4, 4) from (C, 3, depth, 4, 4): a kernel over several frames is summed over time, as the authors do."""
    return weight.sum(2) if weight.ndim == 5 else weight


def _check_copy(key: str, official: Mapping[str, Tensor], path: Path) -> None:
    first = match_key(key, _COPIES)
    if first is not None and not (first in official and torch.equal(official[first], official[key])):
        raise DeixisError(f"{path}: {key} should be a copy of {first}, but differs from it")


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], where: Path | str) -> None:
    """Load a ``state`` with exactly the model's keys and shapes; else DeixisError. A tokenizer may be absent."""
    wanted = {k: tuple(v.shape) for k, v in model.state_dict().items() if not k.endswith("_extra_state")}
    missing, left = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    bent = [k for k in wanted if k in state and wanted[k] != tuple(state[k].shape)]
    for what, keys in (("missing", missing), ("left over", left)):
        if keys:
            raise DeixisError(f"{where} does not fit: {len(keys)} keys {what}, such as {', '.join(keys[:3])}")
    if bent:
        key = bent[0]
        raise DeixisError(f"{where} does not fit: {key} is {tuple(state[key].shape)}, expected {wanted[key]}")
    model.load_state_dict(dict(state), strict=False)  # strict but for the tokenizer, as checked above


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pth file: its "model_state_dict", "state_dict" or "model", or itself.

    Prefixes that wrappers add are taken off, and the older name of the clip module ("vita.") is made the newer. Nothing
    in the file is executed.
    """
    if not path.is_file():
        raise DeixisError(f"no such checkpoint file: {path}")
    if path.stat().st_size > _LARGEST_FILE:
        raise DeixisError(f"{path} is larger than {_LARGEST_FILE >> 30} GiB; no published checkpoint is")
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            holds = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except UnpicklingError as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else "not a weights file"
        raise DeixisError(f"{path} is not a file of weights, or would run code when opened: {first[:160]}") from error
    except _GARBAGE as error:
        raise DeixisError(f"{path} cannot be read; it is cut off or not a PyTorch file") from error
    except MemoryError as error:  # a length that lies, as a rule
        raise DeixisError(f"{path} cannot be read; it needs more memory than there is") from error
    for name in ("model_state_dict", "state_dict", "model"):
        if isinstance(holds, dict) and isinstance(holds.get(name), dict):
            holds = holds[name]
            break
    if not isinstance(holds, dict) or not holds or not all(isinstance(v, Tensor) for v in holds.values()):
        raise DeixisError(f"{path} holds no table of tensors under model_state_dict, state_dict or model")
    for key, value in holds.items():
        if value.layout != torch.strided or value.device.type != "cpu":
            raise DeixisError(f"{path}: {key} is no plain tensor ({value.layout}, {value.device})")
        if value.numel() > max(_LARGEST_VIEW, value.untyped_storage().nbytes() // value.element_size()):
            raise DeixisError(f"{path}: {key} states {value.numel():,} numbers, more than the file holds of it")
    return {_plain_key(str(key)): value for key, value in holds.items()}


def _plain_key(key: str) -> str:
    key = key.removeprefix("module.").removeprefix("backbone." if key.startswith("backbone.patch_embed") else "")
    return "voc." + key.removeprefix("vita.") if key.startswith("vita.") else key


def _numpy_scalars() -> list[Any]:
    """What a numpy scalar (the authors' best score) needs to be unpickled, and nothing more."""
    kinds = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")]
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    return [(scalar, "numpy.core.multiarray.scalar"), scalar, np.dtype, *kinds]


def load_roberta(text: TextEncoder, place: str) -> list[str]:
    """Start the text encoder from roberta-base: a folder, or a name on the hub or in its cache; with its tokenizer.

    Returns the keys that the files do not have: published ones commonly lack the pooler, which then stays random.
    Raises DeixisError where nothing is found, and where anything but the pooler is missing or does not fit.
    """
    config = replace(text.config, tokenizer=place)
    text.tokenizer = roberta_tokenizer(config)
    try:
        published: Any = RobertaModel.from_pretrained(place, add_pooling_layer=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise DeixisError(f"no RoBERTa at {place!r}: {str(error).splitlines()[0][:160]}") from error
    own = text.encoder.state_dict()
    pooler = [key for key in own if key.startswith("pooler.")]
    state = {**published.state_dict(), **{key: own[key] for key in pooler}}
    load_strictly(text.encoder, state, place)
    return pooler


def load_kinetics(vision: VideoSwin, path: Path) -> dict[str, str]:
    """Start a Video Swin from a Kinetics checkpoint (.pth); returns what is left out and why."""
    state: dict[str, Tensor] = {}
    left_out: dict[str, str] = {}
    unknown = []
    for key, value in read_state(path).items():
        short = key.removeprefix("backbone.")
        reason, ours = match_key(short, _KINETICS_LEFT_OUT), match_key(short, KINETICS_KEYS)
        if reason is not None:
            left_out[key] = reason
        elif ours is None:
            unknown.append(key)
        else:
            state[ours] = flat_patch(value) if ours == "patch_embed.proj.weight" else value
    _refuse_unknown(path, unknown, "Video Swin")
    load_strictly(vision, state, path)
    return left_out
