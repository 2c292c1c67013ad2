"""VLMo (arXiv:2111.02358), frozen: one transformer for pictures and texts, with a two-layer network for each of them.

Run separately for each, as for retrieval. The released files were withdrawn and may not be had any more; their layout
is known (read: inside the blocks; from memory: names outside them), and a file that has it is read strictly.

N pictures, S tokens of a picture (CLS, then h w patches, then what a caller appends), B texts, L words with start and
end, C width, A heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from deixis.blocks.constants import constant
from deixis.encoders.frozen import FrozenTower, TowerWeights, find_file, read_own, read_tensors
from deixis.encoders.tokenizers import published_tokenizer, wordpiece_letter_tokenizer
from deixis.types import DeixisError, TextFeatures, bounded

Kind = Literal["imag", "text"]  # as in the published names
_TEXT_SPAN = 196  # words that the text part of the bias table reaches (from memory)

# Keys of a published file that separate towers have no use for: part of the name, and why.
LEFT_OUT: tuple[tuple[str, str], ...] = (
    (".norm2_vl.", "the fused network of the last layers, for both at once"),
    (".mlp_vl.", "the fused network of the last layers, for both at once"),
    ("pooler.", "for classifying pairs"),
    ("mlm_score.", "the head that guesses words"),
    ("itm_score.", "the head that matches pairs"),
    ("itc_vl_", "the joint space after the fused layers"),
    ("logit_scale", "the temperature of its training"),
    ("logit_vl_scale", "the temperature of its training"),
    ("relative_position_index", "a constant, computed from the sizes"),
    ("text_embeddings.position_ids", "a constant of older transformers releases"),
)


@dataclass(frozen=True, kw_only=True)
class VlmoConfig:
    """Sizes; the defaults are those of base with 16-pixel patches and pictures of 384 (read)."""

    place: str = "vlmo_base_patch16_384_coco.pt"  # a file; "": random weights, and letters as tokens
    tokenizer: str = "google-bert/bert-base-uncased"  # hub id or folder, where the place is no file of our own
    width: int = 768  # C
    layers: int = bounded(12, least=0)
    heads: int = 12
    patch: int = 16  # pixels a side
    image: int = 384  # pixels a side that the position biases were made for
    positions: int = 40  # tokens of a text at most, prompts not counted
    vocabulary: int = 30522

    @property
    def text_width(self) -> int:
        """One tower for both."""
        return self.width

    @property
    def joint(self) -> int:
        return self.width


def vlmo_b() -> VlmoConfig:
    """VLMo base."""
    return VlmoConfig()


def vlmo_l() -> VlmoConfig:
    """VLMo large."""
    return VlmoConfig(place="vlmo_large_patch16_384_coco.pt", width=1024, layers=24, heads=16)


class VlmoAttention(nn.Module):
    """Shared by pictures and texts: one fused projection without a bias for the keys."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)


class VlmoMlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class VlmoBlock(nn.Module):
    """The parts of one layer, named as published; ``VlmoLayer`` says what is done with them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps=1e-6), VlmoAttention(width)
        self.norm2_imag, self.norm2_text = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.mlp_imag, self.mlp_text = VlmoMlp(width), VlmoMlp(width)
        self.gamma_1, self.gamma_2 = nn.Parameter(torch.full((width,), 0.1)), nn.Parameter(torch.full((width,), 0.1))


class VlmoBody(nn.Module):
    """All frozen weights under their published names."""

    def __init__(self, config: VlmoConfig) -> None:
        super().__init__()
        c = config.width
        self.transformer: Any = nn.Module()
        self.transformer.cls_token = nn.Parameter(torch.randn(1, 1, c) * 0.02)
        self.transformer.patch_embed = nn.Module()
        self.transformer.patch_embed.proj = nn.Conv2d(3, c, config.patch, config.patch)
        self.transformer.blocks = nn.ModuleList(VlmoBlock(c) for _ in range(config.layers))
        self.transformer.norm = nn.LayerNorm(c, eps=1e-6)
        self.text_embeddings: Any = nn.Module()
        self.text_embeddings.word_embeddings = nn.Embedding(config.vocabulary, c)
        self.text_embeddings.position_embeddings = nn.Embedding(config.positions, c)
        self.text_embeddings.token_type_embeddings = nn.Embedding(2, c)
        self.text_embeddings.LayerNorm = nn.LayerNorm(c, eps=1e-12)
        self.token_type_embeddings = nn.Embedding(2, c)  # 0: a word, 1: a piece of a picture
        rows = bias_rows(config.image // config.patch)
        self.relative_position_bias_table = nn.Parameter(torch.randn(rows, config.heads * config.layers) * 0.02)
        self.itc_text_proj = nn.ModuleDict({"fc": nn.Linear(c, c, bias=False)})
        self.itc_image_proj = nn.ModuleDict({"fc": nn.Linear(c, c, bias=False)})


def bias_rows(side: int) -> int:
    """Rows of the bias table: offsets in a map of side x side, CLS (3), words to pictures and back (2), words, CLS."""
    return (2 * side - 1) ** 2 + 3 + 2 * _TEXT_SPAN + 2


def read_vlmo(config: VlmoConfig, place: str, beside: Path | None) -> TowerWeights:
    """A published file, or one of ``save_tower``. Raises DeixisError for any key that is neither used nor known."""
    path = find_file(place, beside)
    own = read_own(path, "Vlmo", config)
    if own is not None:
        return own
    state = {k: v for k, v in read_tensors(path).items() if not any(part in k for part, _ in LEFT_OUT)}
    return TowerWeights(state, published_tokenizer(config.tokenizer, config.vocabulary))


@dataclass(frozen=True, eq=False)
class VlmoLayer:
    """A frozen layer, part by part: ``x + attend(norm(x), norm(x), mask)``, then ``x + feed(x)``."""

    block: Any
    kind: Kind
    heads: int
    bias: Tensor  # (A, S, S) of the layer's own tokens

    def norm(self, x: Tensor) -> Tensor:
        """The norm before the attention."""
        return self.block.norm1(x)

    def mask(self, extra: int) -> Tensor:
        """(1, A, S + extra, S + extra): the bias among a picture's tokens, 0 for appended ones (our choice)."""
        return F.pad(self.bias, (0, extra, 0, extra))[None]

    def attend(self, queries: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, S, C) from normed queries (N, S, C) and keys (N, K, C); the layer's scale is in it.

        mask: True where a query may attend, or a bias to add; it broadcasts to (N, A, S, K).
        """
        own = self.block.attn
        weight_q, weight_k, weight_v = own.qkv.weight.chunk(3)
        q, k, v = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in (
                F.linear(queries, weight_q, own.q_bias), F.linear(keys, weight_k), F.linear(keys, weight_v, own.v_bias)
            )
        )  # fmt: skip
        mask = mask if mask is None or mask.dtype == torch.bool else mask.to(q.dtype)
        attended = F.scaled_dot_product_attention(q, k, v, mask)
        return self.block.gamma_1 * own.proj(attended.transpose(1, 2).flatten(2))

    def feed(self, x: Tensor) -> Tensor:
        """The branch of the two-layer network of this kind, its norm and scale included."""
        norm, mlp = getattr(self.block, f"norm2_{self.kind}"), getattr(self.block, f"mlp_{self.kind}")
        return self.block.gamma_2 * mlp(norm(x))

    def __call__(self, x: Tensor, mask: Tensor) -> Tensor:
        """The layer as it is."""
        y = self.norm(x)
        x = x + self.attend(y, y, mask)
        return x + self.feed(x)


class Vlmo(FrozenTower):
    """The tower; the same methods as ClipVit."""

    def __init__(self, config: VlmoConfig) -> None:
        super().__init__(config.place, partial(VlmoBody, config), partial(read_vlmo, config))
        self.config = config
        if not config.place:
            self.tokenizer = wordpiece_letter_tokenizer()

    # --- pictures

    def layers(self, height: int, width: int) -> list[VlmoLayer]:
        """The layers for pictures of height x width patches, in order."""
        c, table = self.config, self.module.relative_position_bias_table
        side = c.image // c.patch
        rows = image_rows(table, side, height, width)[picture_index(height, width, table.device)]  # (S, S, A layers)
        biases = rows.permute(2, 0, 1).chunk(c.layers)
        blocks = self.module.transformer.blocks
        return [VlmoLayer(block, "imag", c.heads, bias) for block, bias in zip(blocks, biases, strict=True)]

    def start(self, height: int, width: int) -> Tensor:
        """(C,): the CLS token as the first layer gets it; the same for every picture."""
        return self.module.transformer.cls_token[0, 0] + self.module.token_type_embeddings.weight[1]

    def patches(self, pictures: Tensor) -> Tensor:
        """(N, C, h, w), what the first layer gets, from (N, 3, H, W) whose sides are multiples of the patch."""
        cells = self.module.transformer.patch_embed.proj(pictures)
        return cells + self.module.token_type_embeddings.weight[1][:, None, None].to(cells.dtype)

    def encode_image(self, pictures: Tensor, taps: Sequence[int] = (-1,)) -> tuple[Tensor, ...]:
        """The tokens (N, 1 + h w, C) that leave each of the layers ``taps``; no norm after the last."""
        cells, left = self.patches(pictures), []
        h, w = cells.shape[-2:]
        x = torch.cat([self.start(h, w).to(cells.dtype).expand(len(cells), 1, -1), cells.flatten(2).mT], dim=1)
        for layer in self.layers(h, w):
            x = layer(x, layer.mask(0))
            left.append(x)
        return tuple(left[tap] for tap in taps)

    def project_image(self, tokens: Tensor) -> Tensor:
        """(..., C) of CLS tokens, and by our choice of patches too, after the last layer. Not normalised."""
        return self.module.itc_image_proj["fc"](self.module.transformer.norm(tokens))

    # --- texts

    def tokens(self, texts: Sequence[str], room: int) -> tuple[Tensor, Tensor]:
        """Token ids (B, L) of at most ``room`` tokens, start and end among them, and their padding (B, L)."""
        tokenizer = self.checked_tokenizer()
        tokenizer.no_padding()
        tokenizer.enable_truncation(room)
        ids = [torch.tensor(e.ids) for e in tokenizer.encode_batch([" ".join(t.split()) for t in texts])]
        device = self.module.token_type_embeddings.weight.device
        tokens = nn.utils.rnn.pad_sequence(ids, batch_first=True).to(device)  # 0 is BERT's [PAD]
        lengths = torch.tensor([len(i) for i in ids], device=device)
        return tokens, torch.arange(tokens.shape[1], device=device) >= lengths[:, None]

    def checked_tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises DeixisError where there is none, or one of another vocabulary."""
        size = 0 if self.tokenizer is None else self.tokenizer.get_vocab_size()
        if self.tokenizer is None or not 0 < size <= self.config.vocabulary:
            raise DeixisError(f"the tower's tokenizer has {size} entries, its word table {self.config.vocabulary}")
        return self.tokenizer

    def encode_text(self, texts: Sequence[str], prompts: Tensor | None = None) -> TextFeatures:
        """Words from start to end (B, L, C) after the final norm, and the start's as the sentence (B, C).

        prompts: (n, C) or (B, n, C), put behind the words, and not among the words returned.
        """
        c, body, count = self.config, self.module, 0 if prompts is None else prompts.shape[-2]
        ids, padding = self.tokens(texts, c.positions)
        length, named = ids.shape[1], body.text_embeddings
        x = named.word_embeddings(ids) + named.position_embeddings.weight[:length]
        x = named.LayerNorm(x + named.token_type_embeddings.weight[0]) + body.token_type_embeddings.weight[0]
        if prompts is not None:
            x = torch.cat([x, prompts.to(x.dtype).expand(len(x), -1, -1)], dim=1)
        table = body.relative_position_bias_table
        rows = table[text_index(length, len(table), c.image // c.patch, table.device)]  # (L, L, A layers)
        nowhere = F.pad(padding, (0, count))[:, None, None]  # (B, 1, 1, L + n)
        for block, bias in zip(body.transformer.blocks, rows.permute(2, 0, 1).chunk(c.layers), strict=True):
            layer = VlmoLayer(block, "text", c.heads, bias)
            x = layer(x, layer.mask(count).float().masked_fill(nowhere, float("-inf")))
        x = body.transformer.norm(x)
        return TextFeatures(x[:, :length], padding, x[:, 0])

    def project_text(self, sentences: Tensor) -> Tensor:
        """(B, C) from sentences (B, C). Not normalised."""
        return self.module.itc_text_proj["fc"](sentences)


def image_rows(table: Tensor, side: int, height: int, width: int) -> Tensor:
    """Offsets of a map of height x width, then the three rows of CLS, from a table made for side x side.

    Another size's offsets are resized bicubically (our choice).
    """
    count = 2 * side - 1
    offsets, cls = table[: count**2], table[count**2 : count**2 + 3]
    if (height, width) != (side, side):
        grid = offsets.t().reshape(1, -1, count, count)
        size = (2 * height - 1, 2 * width - 1)
        offsets = F.interpolate(grid, size=size, mode="bicubic", align_corners=False)[0].flatten(1).t()
    return torch.cat([offsets, cls])


@constant
def picture_index(height: int, width: int, device: torch.device) -> Tensor:
    """(S, S) int: the row of each pair of tokens; CLS to others, others to CLS, CLS to itself have the last three."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = y.flatten(), x.flatten()
    rows = (y[:, None] - y + height - 1) * (2 * width - 1) + (x[:, None] - x + width - 1)
    count = (2 * height - 1) * (2 * width - 1)
    index = torch.empty(height * width + 1, height * width + 1, dtype=torch.long)
    index[1:, 1:] = rows
    index[0], index[:, 0], index[0, 0] = count, count + 1, count + 2
    return index.to(device)


@constant
def text_index(length: int, rows: int, side: int, device: torch.device) -> Tensor:
    """(L, L) int: the row of each pair of words; those with the start are the last three rows."""
    place = torch.arange(length - 1)
    first = (2 * side - 1) ** 2 + 3 + 2  # after pictures, and between pictures and words
    index = torch.empty(length, length, dtype=torch.long)
    index[1:, 1:] = place[:, None] - place + (_TEXT_SPAN - 2) + first
    index[0], index[:, 0], index[0, 0] = rows - 3, rows - 2, rows - 1
    return index.to(device)
