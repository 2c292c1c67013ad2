"""Deformable attention and the transformer around it (Deformable DETR, arXiv:2010.04159, eq. 3 and section 4.1).

N frames, S tokens of all levels, L queries that sample, Q object queries, D width, A heads, P points a head and level,
h w cells of a level.

Points are kept in cells of their level, counted from the middle of cell 0: a reference of 0..1 times the level's size,
minus a half, plus the learned offset. Dividing the offset by the size first, as usually written, would cancel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deixis.blocks.attention import PackedAttention, ResidualFeedForward, check_heads
from deixis.blocks.constants import constant

Shape = tuple[int, int]  # height, width of a level in cells
_EPS = 1e-5  # of the inverse sigmoid, as published


@dataclass(frozen=True, eq=False)
class TransformerOutput:
    """Encoded levels and decoded queries, N frames; lists hold one entry a decoder layer.

    memory: the encoded levels, (N, D, h, w) each.  queries: (N, Q, D).
    references: what entered the layer, (N, Q, 2) for the first, (N, Q, 4) afterwards, cx cy w h in 0..1 of the picture.
    boxes: what left it, (N, Q, 4), without gradient.
    """

    memory: tuple[Tensor, ...]
    queries: tuple[Tensor, ...]
    references: tuple[Tensor, ...]
    boxes: tuple[Tensor, ...]


class DeformableTransformer(nn.Module):
    """Detect Q objects in each frame on its own: encode the levels, then decode queries, refining a box a layer."""

    def __init__(
        self,
        width: int,
        queries: int,
        layers: int = 3,
        levels: int = 4,
        heads: int = 8,
        hidden: int = 2048,
        points: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.queries = queries
        shared = (width, heads, levels, points, hidden, dropout)
        self.encoder = nn.ModuleList(EncoderLayer(*shared) for _ in range(layers))
        self.decoder = nn.ModuleList(DecoderLayer(*shared) for _ in range(layers))
        self.level_embed = nn.Parameter(torch.randn(levels, width))
        self.query_position = nn.Parameter(torch.randn(queries, width))
        self.reference = nn.Linear(width, 2)
        nn.init.xavier_uniform_(self.reference.weight)
        nn.init.zeros_(self.reference.bias)

    def forward(
        self,
        levels: Sequence[Tensor],
        positions: Sequence[Tensor],
        paddings: Sequence[Tensor] | None,
        refine: nn.ModuleList,
        content: Tensor | None = None,
    ) -> TransformerOutput:
        """levels: (N, h, w, D) each.  positions: (N or 1, h, w, D).  paddings: (N, h, w), or None for none.

        refine: a box network (D -> 4) a layer.  content: what queries start from, (N, Q, D); default zeros.
        """
        n = len(levels[0])
        shapes = tuple((level.shape[1], level.shape[2]) for level in levels)
        tokens = torch.cat([level.flatten(1, 2) for level in levels], dim=1)  # (N, S, D)
        places = torch.cat(
            [p.flatten(1, 2) + e for p, e in zip(positions, self.level_embed, strict=True)], dim=1
        ).to(tokens.dtype)  # fmt: skip
        padding = None if paddings is None else torch.cat([p.flatten(1) for p in paddings], dim=1)  # (N, S)
        valid = None if paddings is None else torch.stack([valid_share(p) for p in paddings], dim=1)  # (N, levels, 2)

        points = references_of(shapes, valid, tokens.device)
        for layer in self.encoder:
            tokens = layer(tokens, places, points, shapes, padding)

        values = [layer.values(tokens, padding) for layer in self.decoder if isinstance(layer, DecoderLayer)]
        position = self.query_position.expand(n, -1, -1)
        x = torch.zeros_like(position) if content is None else content
        queries, references, boxes = [], [], []
        with torch.autocast(tokens.device.type, enabled=False):  # few tokens, and boxes would suffer from bf16
            reference = self.reference(position).sigmoid()  # (N, Q, 2)
            for layer, box, value in zip(self.decoder, refine, values, strict=True):
                x = layer(x, position, _per_level(reference, valid), value, shapes)
                queries.append(x)
                references.append(reference)
                reference = refine_box(box(x), reference).detach()  # (N, Q, 4)
                boxes.append(reference)
        memory = [
            level.transpose(1, 2).unflatten(2, shape)
            for level, shape in zip(tokens.split([h * w for h, w in shapes], dim=1), shapes, strict=True)
        ]
        return TransformerOutput(tuple(memory), tuple(queries), tuple(references), tuple(boxes))


class EncoderLayer(nn.Module):
    def __init__(self, width: int, heads: int, levels: int, points: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention, self.norm = DeformableAttention(width, heads, levels, points), nn.LayerNorm(width)
        self.feed_forward, self.dropout = ResidualFeedForward(width, hidden, dropout), nn.Dropout(dropout)

    def forward(
        self, tokens: Tensor, places: Tensor, points: Tensor, shapes: Sequence[Shape], padding: Tensor | None
    ) -> Tensor:
        """(N, S, D) -> (N, S, D). points: (N or 1, S, levels, 2), each token's own place."""
        attended = self.attention(tokens + places, points, self.attention.values(tokens, padding), shapes)
        return self.feed_forward(self.norm(tokens + self.dropout(attended)))


class DecoderLayer(nn.Module):
    """Self-attention among the queries, deformable attention to the frame, a two-layer network; each post-norm."""

    def __init__(self, width: int, heads: int, levels: int, points: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.self_attention, self.self_norm = PackedAttention(width, heads, dropout), nn.LayerNorm(width)
        self.cross_attention, self.cross_norm = DeformableAttention(width, heads, levels, points), nn.LayerNorm(width)
        self.feed_forward, self.dropout = ResidualFeedForward(width, hidden, dropout), nn.Dropout(dropout)

    def values(self, memory: Tensor, padding: Tensor | None) -> Tensor:
        """What the queries will sample, (N, S, A, d), from memory (N, S, D)."""
        return self.cross_attention.values(memory, padding)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        reference: Tensor,
        value: Tensor,
        shapes: Sequence[Shape],
    ) -> Tensor:
        """(N, Q, D) -> (N, Q, D). reference: (N, Q, levels, 2 or 4).  value: what ``values`` made of the memory."""
        placed = x + position
        x = self.self_norm(x + self.dropout(self.self_attention(placed, placed, x)))
        attended = self.cross_attention(x + position, reference, value, shapes)
        return self.feed_forward(self.cross_norm(x + self.dropout(attended)))


class DeformableAttention(nn.Module):
    """Each query reads P points a level and head, at learned offsets from its reference, with learned weights."""

    def __init__(self, width: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = check_heads(width, heads), levels, points
        self.sampling_offsets = nn.Linear(width, heads * levels * points * 2)
        self.attention_weights = nn.Linear(width, heads * levels * points)
        self.value_proj, self.output_proj = nn.Linear(width, width), nn.Linear(width, width)
        self._initialise()

    def _initialise(self) -> None:
        """Point i of each head starts i cells away, each head in its own direction; all weights start equal."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        ring = torch.stack([angle.cos(), angle.sin()], -1)
        ring = ring / ring.abs().amax(-1, keepdim=True)  # on a square, so that diagonals reach the corners
        steps = torch.arange(1, self.points + 1)[:, None] * ring[:, None, None]  # (A, 1, P, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(steps.expand(-1, self.levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def values(self, memory: Tensor, padding: Tensor | None) -> Tensor:
        """(N, S, A, d), what there is to sample, from memory (N, S, D) and its padding (N, S) or None."""
        value = self.value_proj(memory)
        if padding is not None:
            value = value.masked_fill(padding[..., None], 0.0)
        return value.unflatten(-1, (self.heads, -1))

    def forward(self, query: Tensor, reference: Tensor, value: Tensor, shapes: Sequence[Shape]) -> Tensor:
        """(N, L, D) from query (N, L, D), reference (N or 1, L, levels, 2 or 4) in 0..1, value (N, S, A, d)."""
        form = (self.heads, self.levels, self.points)
        weights = (
            self.attention_weights(query).float().unflatten(-1, (self.heads, -1)).softmax(-1).unflatten(-1, form[1:])
        )
        offsets = self.sampling_offsets(query).float().unflatten(-1, (*form, 2))  # (N, L, A, levels, P, 2)
        size = level_sizes(tuple(shapes), query.device)  # (levels, 2): width, height
        middle = reference[..., :2] * size - 0.5  # in cells
        if reference.shape[-1] == 4:  # offsets in halves of the box
            offsets = offsets * (reference[..., 2:] * size * (0.5 / self.points))[:, :, None, :, None]
        cells = middle[:, :, None, :, None] + offsets
        needs_gradient = torch.is_grad_enabled() and (value.requires_grad or cells.requires_grad)
        sample = sample_by_grid if needs_gradient or value.device.type != "cpu" else sample_by_bag
        return self.output_proj(sample(value, shapes, cells, weights).to(query.dtype))


def sample_by_grid(value: Tensor, shapes: Sequence[Shape], cells_xy: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of bilinear samples, (N, L, D), through grid_sample: has gradients, runs everywhere.

    value: (N, S, A, d).  cells_xy: (N, L, A, levels, P, 2) in cells, 0 at the middle of the first.
    weights: (N, L, A, levels, P).  Outside a level there is nothing (zeros).
    """
    n, _, a, d = value.shape
    total: Tensor | None = None
    for i, (level, (h, w)) in enumerate(zip(value.split([h * w for h, w in shapes], dim=1), shapes, strict=True)):
        image = level.permute(0, 2, 3, 1).reshape(n * a, d, h, w).float()
        grid = (cells_xy[:, :, :, i] + 0.5) * cells_xy.new_tensor([2.0 / w, 2.0 / h]) - 1  # (N, L, A, P, 2)
        grid = grid.transpose(1, 2).flatten(0, 1)  # (N A, L, P, 2)
        sampled = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        sampled = (sampled * weights[:, :, :, i].transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)  # (N A, d, L)
        total = sampled if total is None else total + sampled
    assert total is not None
    return total.view(n, a * d, -1).transpose(1, 2)


def sample_by_bag(value: Tensor, shapes: Sequence[Shape], cells_xy: Tensor, weights: Tensor) -> Tensor:
    """The same sum as weighted bags of table rows: no gradient, but each row is read in one piece, which a CPU likes.

    A frame at a time, so that index and table stay in the cache. A border of zeros around each level makes every corner
    a row of the table.
    """
    n, _, a, d = value.shape
    queries = cells_xy.shape[1]
    layout = _bag_layout(tuple(shapes), a, value.device)
    table = value.new_zeros(layout.rows * a, d)
    bag = value.new_empty(queries * a, 4, weights.shape[-2] * weights.shape[-1])  # corner weights
    index = torch.empty_like(bag, dtype=torch.int32)
    out = value.new_empty(n, queries * a, d)
    for i in range(n):
        table.view(-1, a, d)[layout.inside] = value[i]
        corner = torch.minimum(
            (cells_xy[i] + 1).clamp_(min=0), layout.limit
        )  # (L, A, levels, P, 2), now from the border
        low = corner.floor()
        fraction = corner.sub_(low)
        fx, fy = fraction[..., 0], fraction[..., 1]
        row = ((low[..., 1] * layout.width + low[..., 0]) * a).add_(layout.first).to(torch.int32)
        lower = weights[i] * fy
        upper = weights[i] - lower
        for j, (side, down) in enumerate(((upper, 0), (lower, 1))):
            right = side * fx
            bag.view(-1, 2, 2, *row.shape[-2:])[:, j, 0] = (side - right).flatten(0, 1)
            bag.view(-1, 2, 2, *row.shape[-2:])[:, j, 1] = right.flatten(0, 1)
            start = row if not down else row + layout.next_row
            index.view(-1, 2, 2, *row.shape[-2:])[:, j, 0] = start.flatten(0, 1)
            index.view(-1, 2, 2, *row.shape[-2:])[:, j, 1] = (start + a).flatten(0, 1)
        out[i] = F.embedding_bag(index.flatten(1), table, per_sample_weights=bag.flatten(1), mode="sum")
    return out.view(n, queries, a * d)


@dataclass(frozen=True, eq=False)
class _BagLayout:
    rows: int  # of the table, a head
    inside: Tensor  # (S,) where each token goes among the bordered rows
    limit: Tensor  # (levels, 1, 2) the largest x and y, in bordered cells
    width: Tensor  # (levels, 1) of the bordered level, float
    next_row: Tensor  # (levels, 1) int32, rows of the table from a cell to the one below
    first: Tensor  # (A, levels, 1) float, the table row of each level's corner


@constant
def _bag_layout(shapes: tuple[Shape, ...], heads: int, device: torch.device) -> _BagLayout:
    inside, start, starts = [], 0, []
    for h, w in shapes:
        cell = (torch.arange(h)[:, None] + 1) * (w + 3) + torch.arange(w) + 1
        inside.append(start + cell.flatten())
        starts.append(start)
        start += (h + 3) * (w + 3)  # one cell before; two after, because the corner beyond the limit is read (times 0)
    widths = torch.tensor([w + 3 for _, w in shapes])[:, None]
    limit = torch.tensor([[w + 1.0, h + 1.0] for h, w in shapes])[:, None]
    first = torch.tensor(starts)[None, :, None] * heads + torch.arange(heads)[:, None, None]
    return _BagLayout(
        start,
        torch.cat(inside).to(device),
        limit.to(device),
        widths.float().to(device),
        (widths * heads).int().to(device),
        first.float().to(device),
    )


@constant
def level_sizes(shapes: tuple[Shape, ...], device: torch.device) -> Tensor:
    """(levels, 2) float: width and height."""
    return torch.tensor([[w, h] for h, w in shapes], dtype=torch.float32, device=device)


@constant
def token_references(shapes: tuple[Shape, ...], device: torch.device) -> Tensor:
    """(1, S, levels, 2): the middle of each token's cell as shares x, y of the picture, for every level to sample."""
    return _cell_middles(shapes, device)[None, :, None].expand(-1, -1, len(shapes), -1)


def references_of(shapes: tuple[Shape, ...], valid: Tensor | None, device: torch.device) -> Tensor:
    """(N or 1, S, levels, 2): where each token lies. valid: (N, levels, 2) shares of picture; None: no padding."""
    return token_references(shapes, device) if valid is None else _padded_token_references(shapes, valid)


def _padded_token_references(shapes: tuple[Shape, ...], valid: Tensor) -> Tensor:
    """(N, S, levels, 2): the same where only a share of each level is picture; valid: (N, levels, 2)."""
    own = valid.repeat_interleave(torch.tensor([h * w for h, w in shapes], device=valid.device), dim=1)  # (N, S, 2)
    return (_cell_middles(shapes, valid.device) / own)[:, :, None] * valid[:, None]


@constant
def _cell_middles(shapes: tuple[Shape, ...], device: torch.device) -> Tensor:
    """(S, 2): x, y of each token's middle as a share of its level."""
    middles = []
    for h, w in shapes:
        y, x = (torch.arange(h, device=device) + 0.5) / h, (torch.arange(w, device=device) + 0.5) / w
        middles.append(torch.stack([x.expand(h, w), y[:, None].expand(h, w)], dim=-1).flatten(0, 1))
    return torch.cat(middles)


def valid_share(padding: Tensor) -> Tensor:
    """(N, 2): which share of a map's width and height is picture, for padding (N, h, w)."""
    return torch.stack([(~padding[:, 0]).float().mean(1), (~padding[:, :, 0]).float().mean(1)], dim=-1)


def _per_level(reference: Tensor, valid: Tensor | None) -> Tensor:
    """(N, Q, 2 or 4) of the picture to (N, Q, 1 or levels, 2 or 4) of each level, padding included."""
    if valid is None:
        return reference[:, :, None]
    return reference[:, :, None] * torch.cat([valid] * (reference.shape[-1] // 2), dim=-1)[:, None]


def refine_box(change: Tensor, reference: Tensor) -> Tensor:
    """(..., 4) boxes cx cy w h in 0..1: the change (..., 4) added to the logits of a box, or of a point (..., 2)."""
    logits = change.float()
    before = inverse_sigmoid(reference)
    if before.shape[-1] == 2:
        before = F.pad(before, (0, 2))
    return (logits + before).sigmoid()


def inverse_sigmoid(share: Tensor) -> Tensor:
    """The logit of a share in 0..1, finite at both ends."""
    share = share.clamp(0, 1)
    return (share.clamp(min=_EPS) / (1 - share).clamp(min=_EPS)).log()
