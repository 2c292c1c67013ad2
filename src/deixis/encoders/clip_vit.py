"""CLIP's vision transformer with its text tower (arXiv:2103.00020), frozen, from transformers' layers, open inside.

Tokens may be put into any layer, and any layer's own weights be used again for something else. With nothing put in, the
towers compute exactly what transformers' CLIPModel does.

N pictures, S tokens of a picture (CLS, then h w patches, then what a caller appends), B texts, L words with start and
end, C width of a tower.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from deixis.encoders.frozen import FrozenTower, TowerWeights, find_file, read_own, read_tensors
from deixis.encoders.tokenizers import published_tokenizer, roberta_letter_tokenizer
from deixis.types import DeixisError, TextFeatures, bounded

_CONSTANTS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")  # in files of old releases
_PAD = 0  # any id will do: attention is causal, so nothing attends to what follows the end


@dataclass(frozen=True, kw_only=True)
class ClipVitConfig:
    """Sizes of both towers; the defaults are ViT-B/16's (from memory; a file that is read must fit them)."""

    place: str = "openai/clip-vit-base-patch16"  # hub id, folder or file; "": random weights, and letters as tokens
    width: int = 768  # C of the vision tower
    layers: int = bounded(12, least=0)
    heads: int = 12
    patch: int = 16  # pixels a side
    image: int = 224  # pixels a side that the position embeddings were made for
    text_width: int = 512  # C of the text tower
    text_layers: int = bounded(12, least=0)
    text_heads: int = 8
    positions: int = 77  # tokens of a text at most, prompts included
    vocabulary: int = 49408
    joint: int = 512  # width of the space that both towers end in


def clip_vit_b() -> ClipVitConfig:
    """ViT-B/16."""
    return ClipVitConfig()


def clip_vit_l() -> ClipVitConfig:
    """ViT-L/14."""
    return ClipVitConfig(
        place="openai/clip-vit-large-patch14", width=1024, layers=24, heads=16, patch=14, text_width=768, text_heads=12,
        joint=768,
    )  # fmt: skip


def make_config(config: ClipVitConfig) -> CLIPConfig:
    """The same sizes in transformers' words."""
    shared: dict[str, Any] = {"hidden_act": "quick_gelu", "projection_dim": config.joint}
    vision = {
        "hidden_size": config.width, "intermediate_size": 4 * config.width, "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads, "patch_size": config.patch, "image_size": config.image, **shared,
    }  # fmt: skip
    text = {
        "hidden_size": config.text_width, "intermediate_size": 4 * config.text_width,
        "num_hidden_layers": config.text_layers, "num_attention_heads": config.text_heads,
        "max_position_embeddings": config.positions, "vocab_size": config.vocabulary,
        "bos_token_id": config.vocabulary - 2, "eos_token_id": config.vocabulary - 1, **shared,
    }  # fmt: skip
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=config.joint)


def make_clip(config: ClipVitConfig) -> CLIPModel:
    """transformers' CLIPModel of these sizes, random weights."""
    return CLIPModel(make_config(config))


def read_clip_weights(config: ClipVitConfig, place: str, beside: Path | None) -> TowerWeights:
    """A published CLIP: hub id, folder (weights, config.json, tokenizer) or file in one; or a file of ``save_tower``.

    Raises DeixisError for what is not there, and for a config.json or tokenizer of another model.
    """
    path = find_file(place, beside)
    own = read_own(path, "ClipVit", config)
    if own is not None:
        return own
    from_hub = not Path(place).exists() and path.parent != beside
    facts = find_file(place, names=("config.json",)) if from_hub else path.with_name("config.json")
    if facts.is_file():
        _check_published(facts, config)
    state = {key: value for key, value in read_tensors(path).items() if key not in _CONSTANTS}
    return TowerWeights(state, published_tokenizer(place if from_hub else str(path.parent), config.vocabulary))


def _check_published(path: Path, config: ClipVitConfig) -> None:
    """Raise DeixisError unless a config.json agrees in what the weights' shapes do not show."""
    try:
        theirs = CLIPConfig.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DeixisError(f"{path} is not a readable config of CLIP") from error
    ours = make_config(config)
    for part in ("vision_config", "text_config"):
        for name in ("num_attention_heads", "hidden_act", "layer_norm_eps"):
            found, wanted = getattr(getattr(theirs, part), name), getattr(getattr(ours, part), name)
            if found != wanted:
                raise DeixisError(f"{path}: {part}.{name} is {found}, expected {wanted}")


@dataclass(frozen=True, eq=False)
class OpenLayer:
    """A frozen layer, part by part: ``x + attend(norm(x), norm(x))``, then ``x + feed(x)``."""

    layer: Any  # transformers' CLIPEncoderLayer

    def norm(self, x: Tensor) -> Tensor:
        """The norm before the attention."""
        return self.layer.layer_norm1(x)

    def mask(self, extra: int) -> None:
        """None: nothing is added to a picture's attention, however many tokens were appended."""

    def attend(self, queries: Tensor, keys: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """(N, S, C) from normed queries (N, S, C) and keys (N, K, C), with the layer's own projections.

        mask: True where a query may attend, or a bias to add; it broadcasts to (N, heads, S, K).
        """
        own = self.layer.self_attn
        q, k, v = (
            project(x).unflatten(-1, (own.num_heads, -1)).transpose(1, 2)
            for project, x in ((own.q_proj, queries), (own.k_proj, keys), (own.v_proj, keys))
        )  # (N, heads, S or K, C / heads)
        attended = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
        return own.out_proj(attended.transpose(1, 2).flatten(2))

    def feed(self, x: Tensor) -> Tensor:
        """The two-layer network's branch, its norm included."""
        return self.layer.mlp(self.layer.layer_norm2(x))

    def __call__(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """The layer as it is."""
        y = self.norm(x)
        x = x + self.attend(y, y, mask, causal)
        return x + self.feed(x)


class ClipVit(FrozenTower):
    """Both towers. ``encode_image`` and ``encode_text`` are the plain passes; callers that append tokens iterate over
    ``layers()``."""

    def __init__(self, config: ClipVitConfig) -> None:
        super().__init__(config.place, partial(make_clip, config), partial(read_clip_weights, config))
        self.config = config
        if not config.place:
            self.tokenizer = roberta_letter_tokenizer()

    # --- pictures

    def layers(self, height: int, width: int) -> list[OpenLayer]:
        """The vision layers for pictures of height x width patches (the same for all), in order."""
        return [OpenLayer(layer) for layer in self.module.vision_model.encoder.layers]

    def start(self, height: int, width: int) -> Tensor:
        """(C,): the CLS token as the first layer gets it; the same for every picture."""
        body = self.module.vision_model
        return body.pre_layrnorm(body.embeddings.class_embedding + body.embeddings.position_embedding.weight[0])

    def patches(self, pictures: Tensor) -> Tensor:
        """(N, C, h, w), what the first layer gets, from (N, 3, H, W) whose sides are multiples of the patch."""
        body = self.module.vision_model
        cells = body.embeddings.patch_embedding(pictures)  # (N, C, h, w)
        placed = cells.permute(0, 2, 3, 1) + self._places(*cells.shape[-2:]).to(cells.dtype)
        return body.pre_layrnorm(placed).permute(0, 3, 1, 2)

    def _places(self, height: int, width: int) -> Tensor:
        """(h, w, C): the position embeddings of patches, resized bicubically where the map is not the trained one's."""
        side = self.config.image // self.config.patch
        grid = self.module.vision_model.embeddings.position_embedding.weight[1:].unflatten(0, (side, side))
        if (height, width) == (side, side):
            return grid
        grid = F.interpolate(grid.permute(2, 0, 1)[None], size=(height, width), mode="bicubic", align_corners=False)
        return grid[0].permute(1, 2, 0)

    def encode_image(self, pictures: Tensor, taps: Sequence[int] = (-1,)) -> tuple[Tensor, ...]:
        """The tokens (N, 1 + h w, C) that leave each of the layers ``taps``; no norm after the last."""
        cells, left = self.patches(pictures), []
        h, w = cells.shape[-2:]
        x = torch.cat([self.start(h, w).to(cells.dtype).expand(len(cells), 1, -1), cells.flatten(2).mT], dim=1)
        for layer in self.layers(h, w):
            x = layer(x)
            left.append(x)
        return tuple(left[tap] for tap in taps)

    def project_image(self, tokens: Tensor) -> Tensor:
        """(..., joint) of CLS tokens, and by custom of patches too, (..., C) after the last layer. Not normalised."""
        return self.module.visual_projection(self.module.vision_model.post_layernorm(tokens))

    # --- texts

    def tokens(self, texts: Sequence[str], room: int) -> tuple[Tensor, Tensor]:
        """Token ids (B, L) of at most ``room`` tokens, start and end among them, and their padding (B, L)."""
        tokenizer = self.checked_tokenizer()
        tokenizer.no_padding()
        tokenizer.enable_truncation(room)
        ids = [torch.tensor(e.ids) for e in tokenizer.encode_batch([" ".join(t.split()) for t in texts])]
        device = self.module.text_projection.weight.device
        tokens = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=_PAD).to(device)
        lengths = torch.tensor([len(i) for i in ids], device=device)
        return tokens, torch.arange(tokens.shape[1], device=device) >= lengths[:, None]

    def checked_tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises DeixisError where there is none, or one of another vocabulary."""
        found = self.tokenizer
        size = 0 if found is None else found.get_vocab_size()
        if found is None or not 0 < size <= self.config.vocabulary:
            raise DeixisError(f"the tower's tokenizer has {size} entries, its word table {self.config.vocabulary}")
        return found

    def encode_text(self, texts: Sequence[str], prompts: Tensor | None = None) -> TextFeatures:
        """Words from start to end (B, L, C) after the final norm, and the end's as the sentence (B, C).

        prompts: (n, C) or (B, n, C), put between start and words, since attention is causal: later ones attend to them.
        They are not among the words returned, and take their room away: texts are cut off after
        ``positions - n`` tokens.
        """
        body, count = self.module.text_model, 0 if prompts is None else prompts.shape[-2]
        ids, padding = self.tokens(texts, self.config.positions - count)
        x = body.embeddings.token_embedding(ids)  # (B, L, C)
        if prompts is not None:
            x = torch.cat([x[:, :1], prompts.to(x.dtype).expand(len(x), -1, -1), x[:, 1:]], dim=1)
        x = x + body.embeddings.position_embedding.weight[: x.shape[1]]
        for layer in body.encoder.layers:
            x = OpenLayer(layer)(x, causal=True)
        x = body.final_layer_norm(x)
        words = torch.cat([x[:, :1], x[:, 1 + count :]], dim=1)
        ends = (~padding).sum(1) - 1
        return TextFeatures(words, padding, words[torch.arange(len(words), device=words.device), ends])

    def project_text(self, sentences: Tensor) -> Tensor:
        """(B, joint) from sentences (B, C). Not normalised."""
        return self.module.text_projection(sentences)
