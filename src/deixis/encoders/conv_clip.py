"""ConvNeXt CLIP as open_clip trains it (arXiv:2212.07143): frozen image and text encoders in one space.

Built from transformers' ConvNeXt and CLIP text layers; open_clip's files load strictly through the table below.

B clips or texts, T frames, L words, E width of the joint space. Used frozen, as FC-CLIP does (arXiv:2308.02487): a
convolutional CLIP's features keep their meaning at sizes it was not trained at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from deixis.encoders.frozen import FrozenTower, TowerWeights, find_file, read_own, read_tensors
from deixis.encoders.tokenizers import clip_letter_tokenizer, clip_tokenizer, ids_of
from deixis.types import DeixisError, TextFeatures, bounded

CONV_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
MERGES_FILE = "bpe_simple_vocab_16e6.txt.gz"
CONV_CLIP_STRIDES = (4, 8, 16, 32)  # pixels a cell of each level


@dataclass(frozen=True, kw_only=True)
class ConvClipConfig:
    """Sizes of both towers; the defaults are those of convnext_large_d_320 (read)."""

    place: str = ""  # of the weights: a hub id, a folder, a file; "": random, and saved along
    # Of the vocabulary: a hub id, a folder, a file of merges; "": the place itself, or what lies beside the file.
    tokenizer: str = ""
    channels: tuple[int, int, int, int] = (192, 384, 768, 1536)  # of the four levels
    depths: tuple[int, int, int, int] = bounded((3, 3, 27, 3), least=0)
    head: Literal["linear", "mlp"] = "mlp"  # from the pooled picture into the joint space; "mlp" is 2 E wide inside
    joint: int = 768  # E
    vocabulary: int = 49408
    positions: int = 77
    text_width: int = 768
    text_layers: int = bounded(16, least=0)
    text_heads: int = 12


def convnext_large_d_320() -> ConvClipConfig:
    return ConvClipConfig(place="laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup")


def convnext_base_w_320() -> ConvClipConfig:
    return ConvClipConfig(
        place="laion/CLIP-convnext_base_w_320-laion_aesthetic-s13B-b82K-augreg",
        channels=(128, 256, 512, 1024), head="linear", joint=640, text_width=640, text_layers=12, text_heads=10,
    )  # fmt: skip


class ConvClip(FrozenTower):
    """Four levels of a picture, and a text's words in the joint space. Frozen, unless its body is set to train."""

    def __init__(self, config: ConvClipConfig) -> None:
        super().__init__(config.place, lambda: ConvClipBody(config), self.read_place)
        self.config = config
        if not config.place:
            self.tokenizer = clip_tokenizer(config.tokenizer) if config.tokenizer else clip_letter_tokenizer()

    def read_place(self, place: str, beside: Path | None) -> TowerWeights:
        """The weights of a tower file of ours, or of a published open_clip file, under our keys."""
        path = find_file(place, beside, CONV_CLIP_FILES)
        own = read_own(path, type(self).__name__, self.config)
        if own is not None:
            return own
        return TowerWeights(rename_open_clip(read_tensors(path), path))

    def encode_image(self, frames: Tensor) -> tuple[Tensor, ...]:
        """(B, T, C, h, w) at strides 4, 8, 16, 32 of frames (B, T, 3, H, W), each by itself.

        H and W are best multiples of 32: what is left over at the right and below is cut off.
        """
        body = self.module
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains(body)):
            x = body.vision.embeddings(frames.flatten(0, 1))
            levels = []
            for stage in body.vision.encoder.stages:
                x = stage(x)
                levels.append(x.unflatten(0, frames.shape[:2]))
        return tuple(levels)

    def picture(self, frames: Tensor) -> Tensor:
        """(N, E): whole pictures (N, 3, H, W) in the joint space, not normalised."""
        body = self.module
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains(body)):
            return body.picture_head(body.vision(pixel_values=frames).pooler_output)

    def encode_text(self, texts: Sequence[str]) -> TextFeatures:
        """Every token of the texts in the joint space, start and end included; the sentence is the end's. C = E."""
        body = self.module
        tokens, padding = ids_of(self.checked_tokenizer(), texts, self.config.positions)
        device = body.word_projection.weight.device
        tokens, padding = tokens.to(device), padding.to(device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains(body)):
            x = body.text_model.embeddings(input_ids=tokens)
            before = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=device).tril()[None, None]
            for layer in body.text_model.encoder.layers:
                x = layer(x, before)  # a token attends to those before it, so padding behind the end changes nothing
            words = body.word_projection(body.text_model.final_layer_norm(x))
        ends = (~padding).sum(1) - 1
        return TextFeatures(words, padding, words[torch.arange(len(words), device=device), ends])

    def checked_tokenizer(self):  # type: ignore[no-untyped-def]
        """The tokenizer, located when the first text is encoded. Raises DeixisError where none is found."""
        if self.tokenizer is None:
            self.tokenizer = clip_tokenizer(self.config.tokenizer or vocabulary_near(self.place))
        size = self.tokenizer.get_vocab_size()
        if size > self.config.vocabulary or (self.place and self.config.tokenizer and size != self.config.vocabulary):
            raise DeixisError(
                f"the tokenizer has {size} entries, but the text encoder {self.config.vocabulary}; "
                "they belong to two models"
            )
        return self.tokenizer


class ConvClipBody(nn.Module):
    """Both towers with random weights, and what leads from each into the joint space."""

    def __init__(self, config: ConvClipConfig) -> None:
        # Imported when a tower is built: listing the systems must stay fast.
        from transformers import CLIPTextConfig, CLIPTextModel, ConvNextConfig, ConvNextModel

        super().__init__()
        self.vision = ConvNextModel(
            ConvNextConfig(
                hidden_sizes=list(config.channels), depths=list(config.depths), layer_norm_eps=1e-6,
                layer_scale_init_value=1e-6, drop_path_rate=0.0,
            )
        )  # fmt: skip
        width, joint = config.channels[-1], config.joint
        self.picture_head: nn.Module = nn.Linear(width, joint, bias=False)
        if config.head == "mlp":
            self.picture_head = nn.Sequential(
                nn.Linear(width, 2 * joint), nn.GELU(), nn.Linear(2 * joint, joint, bias=False)
            )
        text = CLIPTextConfig(
            vocab_size=config.vocabulary, hidden_size=config.text_width, intermediate_size=4 * config.text_width,
            num_hidden_layers=config.text_layers, num_attention_heads=config.text_heads,
            max_position_embeddings=config.positions, hidden_act="gelu", layer_norm_eps=1e-5,
            bos_token_id=config.vocabulary - 2, eos_token_id=config.vocabulary - 1,
            attn_implementation="sdpa",  # type: ignore[call-arg]
        )  # fmt: skip
        self.text_model = CLIPTextModel(text)
        self.word_projection = nn.Linear(config.text_width, joint, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))  # log 14.3, where CLIP starts; read only in training


def trains(body: nn.Module) -> bool:
    return next(body.parameters()).requires_grad


def vocabulary_near(place: str) -> str:
    """Where the vocabulary of a place is: itself if it is a folder or a hub id, else what lies beside the file."""
    path = Path(place)
    folder = path.parent if path.is_file() else path
    merges = folder / MERGES_FILE
    return str(merges) if merges.is_file() else str(folder) if path.exists() else place


# (open_clip's key, ours): "#" stands for a number, "*" for the rest, in the same order on both sides. First match wins.
KEYS: tuple[tuple[str, str], ...] = (
    ("visual.trunk.stem.0.*", "vision.embeddings.patch_embeddings.*"),
    ("visual.trunk.stem.1.*", "vision.embeddings.layernorm.*"),
    ("visual.trunk.stages.#.downsample.#.*", "vision.encoder.stages.#.downsampling_layer.#.*"),
    ("visual.trunk.stages.#.blocks.#.conv_dw.*", "vision.encoder.stages.#.layers.#.dwconv.*"),
    ("visual.trunk.stages.#.blocks.#.norm.*", "vision.encoder.stages.#.layers.#.layernorm.*"),
    ("visual.trunk.stages.#.blocks.#.mlp.fc1.*", "vision.encoder.stages.#.layers.#.pwconv1.*"),
    ("visual.trunk.stages.#.blocks.#.mlp.fc2.*", "vision.encoder.stages.#.layers.#.pwconv2.*"),
    ("visual.trunk.stages.#.blocks.#.gamma", "vision.encoder.stages.#.layers.#.layer_scale_parameter"),
    ("visual.trunk.head.norm.*", "vision.layernorm.*"),
    ("visual.head.proj.*", "picture_head.*"),
    ("visual.head.mlp.fc1.*", "picture_head.0.*"),
    ("visual.head.mlp.fc2.*", "picture_head.2.*"),
    ("token_embedding.*", "text_model.embeddings.token_embedding.*"),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("transformer.resblocks.#.ln_1.*", "text_model.encoder.layers.#.layer_norm1.*"),
    ("transformer.resblocks.#.ln_2.*", "text_model.encoder.layers.#.layer_norm2.*"),
    ("transformer.resblocks.#.attn.out_proj.*", "text_model.encoder.layers.#.self_attn.out_proj.*"),
    ("transformer.resblocks.#.mlp.c_fc.*", "text_model.encoder.layers.#.mlp.fc1.*"),
    ("transformer.resblocks.#.mlp.c_proj.*", "text_model.encoder.layers.#.mlp.fc2.*"),
    ("ln_final.*", "text_model.final_layer_norm.*"),
    ("text_projection", "word_projection.weight"),
    ("logit_scale", "logit_scale"),
)
_PACKED = re.compile(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")


def rename_open_clip(published: Mapping[str, Tensor], where: Path | str) -> dict[str, Tensor]:
    """open_clip's state under our keys: packed attention projections in three, the text projection transposed.

    Raises DeixisError for a key that is not in the table.
    """
    state: dict[str, Tensor] = {}
    unknown = []
    for long, value in published.items():
        key = long.removeprefix("module.")
        packed = _PACKED.fullmatch(key)
        ours = _renamed(key)
        if packed:
            for part, name in zip(value.chunk(3), "qkv", strict=True):
                state[f"text_model.encoder.layers.{packed[1]}.self_attn.{name}_proj.{packed[2]}"] = part
        elif ours is None:
            unknown.append(key)
        else:
            state[ours] = value.t() if key == "text_projection" else value
    if unknown:
        some = ", ".join(sorted(unknown)[:3])
        raise DeixisError(f"{where}: {len(unknown)} keys are unknown to ConvNeXt CLIP: {some}")
    return state


def _renamed(key: str) -> str | None:
    for left, right in KEYS:
        found = re.fullmatch(re.escape(left).replace(r"\#", r"(\d+)").replace(r"\*", "(.+)"), key)
        if found:
            values = iter(found.groups())
            return re.sub(r"[#*]", lambda _, values=values: next(values), right)  # type: ignore[misc]
    return None


def small_conv_clip(vocabulary: int = 514, **changes: object) -> ConvClipConfig:
    """Random towers of the same form that a test, or a small run on generated films, can afford (our choice)."""
    config = ConvClipConfig(
        channels=(16, 32, 48, 64), depths=(1, 1, 2, 1), head="linear", joint=48, vocabulary=vocabulary, text_width=48,
        text_layers=2, text_heads=4,
    )  # fmt: skip
    return replace(config, **changes)  # type: ignore[arg-type]
