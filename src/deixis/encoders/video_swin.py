"""Video Swin Transformer, T and B (arXiv:2106.13230), with one frame a patch, so that time is never shortened.

B clips, T frames, C channels, h w cells, N tokens of a clip, n tokens of a window, A heads.

What a window costs is moving it: textbook renderings pad, roll, cut into windows and undo all of that. Here one index a
block says which token stands where in which window, and one says the way back. The windows of a shifted block differ
only in whether they lie at the far border in time, height and width: at most eight kinds, so relative bias and border
mask are folded into at most eight small tables, and the windows are sorted by kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deixis.blocks.attention import check_heads, in_pieces
from deixis.blocks.constants import constant
from deixis.types import bounded

Size3d = tuple[int, int, int]  # time, height, width, in tokens


@dataclass(frozen=True, kw_only=True)
class VideoSwinConfig:
    """The numbers of the two published sizes are read from their checkpoints' shapes."""

    dim: int = 96  # channels of the first stage; doubled at each of the next
    depths: tuple[int, ...] = bounded((2, 2, 6, 2), least=0)  # blocks a stage
    heads: tuple[int, ...] = (3, 6, 12, 24)  # heads a stage
    window: Size3d = (8, 7, 7)  # tokens in time, height, width
    patch: int = 4  # pixels, both ways
    drop_path: float = 0.2  # probability at the last block, growing linearly from 0


def video_swin_t() -> VideoSwinConfig:
    return VideoSwinConfig()


def video_swin_b() -> VideoSwinConfig:
    return VideoSwinConfig(dim=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32))


class VideoSwin(nn.Module):
    """frames (B, T, 3, H, W) -> one feature map a stage: (B, T, C, h, w) at strides 4, 8, 16, 32.

    H and W may be any size: what does not divide is padded with zeros, inside.
    """

    def __init__(self, config: VideoSwinConfig) -> None:
        super().__init__()
        stages = len(config.depths)
        self.channels = tuple(config.dim * 2**i for i in range(stages))
        self.strides = tuple(config.patch * 2**i for i in range(stages))
        last = max(sum(config.depths) - 1, 1)
        drop = iter([config.drop_path * i / last for i in range(sum(config.depths))])
        self.patch_embed = PatchEmbed(config.dim, config.patch)
        self.layers = nn.ModuleList(
            nn.ModuleList(SwinBlock(width, heads, config.window, i % 2 == 1, next(drop)) for i in range(depth))
            for width, heads, depth in zip(self.channels, config.heads, config.depths, strict=True)
        )
        self.merge = nn.ModuleList(PatchMerging(width) for width in self.channels[:-1])

    def forward(self, frames: Tensor) -> list[Tensor]:
        x = self.patch_embed(frames)  # (B, T, h, w, C)
        levels = []
        for i, blocks in enumerate(self.layers):
            assert isinstance(blocks, nn.ModuleList)
            size = (x.shape[1], x.shape[2], x.shape[3])
            tokens = x.flatten(1, 3)  # (B, N, C)
            for block in blocks.children():
                assert isinstance(block, SwinBlock)
                tokens = block(tokens, plan_windows(size, block.window, block.shifted, tokens.device))
            x = tokens.unflatten(1, size)
            levels.append(x.permute(0, 1, 4, 2, 3))  # a view: channels stay innermost in memory
            if i < len(self.merge):
                x = self.merge[i](x)  # (B, T, h/2, w/2, 2C)
        return levels


class PatchEmbed(nn.Module):
    """Squares of ``patch`` pixels to tokens; the published weights have a kernel one frame deep, kept here as 2-D."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(3, width, patch, patch)
        self.norm = nn.LayerNorm(width)

    def forward(self, frames: Tensor) -> Tensor:
        b, t, _, h, w = frames.shape
        x = frames.flatten(0, 1).to(self.proj.weight.dtype)
        x = self.proj(F.pad(x, (0, -w % self.patch, 0, -h % self.patch)))
        return self.norm(x.permute(0, 2, 3, 1).unflatten(0, (b, t)))


class PatchMerging(nn.Module):
    """Two by two tokens become one of twice the width; odd sizes are padded with zeros first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:4]
        x = F.pad(x, (0, 0, 0, w % 2, 0, h % 2))
        corners = [x[:, :, i::2, j::2] for j in (0, 1) for i in (0, 1)]  # down the rows first
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class SwinBlock(nn.Module):
    """Attention within windows, then a two-layer network, both residual, pre-norm."""

    def __init__(self, width: int, heads: int, window: Size3d, shifted: bool, drop_path: float) -> None:
        super().__init__()
        self.window, self.shifted, self.drop_path = window, shifted, drop_path
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = SwinWindowAttention(width, heads, window)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor, plan: WindowPlan) -> Tensor:
        """(B, N, C) -> (B, N, C), N tokens in the order of the plan's size."""
        tokens = tokens + self._sometimes(self.attn(self.norm1(tokens), plan))
        return in_pieces(self._widen, tokens, 4 * tokens.shape[-1])

    def _widen(self, tokens: Tensor) -> Tensor:
        return tokens + self._sometimes(self.mlp(self.norm2(tokens)))

    def _sometimes(self, change: Tensor) -> Tensor:
        """Stochastic depth (arXiv:1603.09382): in training, a clip skips the change with probability drop_path."""
        if not self.training or self.drop_path == 0:
            return change
        keep = torch.rand(len(change), 1, 1, device=change.device) >= self.drop_path
        return change * keep.to(change.dtype) / (1 - self.drop_path)


class SwinWindowAttention(nn.Module):
    """Attention of each window's tokens among themselves, with a learned bias a head and relative place."""

    relative_places: Tensor

    def __init__(self, width: int, heads: int, window: Size3d) -> None:
        super().__init__()
        self.heads = check_heads(width, heads)
        places = (2 * window[0] - 1) * (2 * window[1] - 1) * (2 * window[2] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.empty(places, heads))
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.register_buffer("relative_places", relative_places(window), persistent=False)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, tokens: Tensor, plan: WindowPlan) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        b, _, c = tokens.shape
        windows = tokens.index_select(1, plan.gather)
        if plan.holes is not None:  # padding is zeros after the norm, and is attended to, as published
            windows = windows.index_fill(1, plan.holes, 0.0)
        q, k, v = self.qkv(windows).view(b, -1, plan.length, 3, self.heads, c // self.heads).permute(3, 0, 1, 4, 2, 5)
        bias = self._bias(plan.length)  # (A, n, n)
        done, first = [], 0
        for count, mask in plan.kinds:
            part = slice(first, first + count)
            table = (bias if mask is None else bias + mask).to(q.dtype)
            q_, k_, v_ = (x[:, part].flatten(0, 1) for x in (q, k, v))  # (B W, A, n, d) each
            out = F.scaled_dot_product_attention(q_, k_, v_, attn_mask=table[None])
            done.append(out.transpose(1, 2).reshape(b, count * plan.length, c))
            first += count
        attended = done[0] if len(done) == 1 else torch.cat(done, dim=1)
        return self.proj(attended.index_select(1, plan.scatter))

    def _bias(self, length: int) -> Tensor:
        # A window that shrank keeps the index of the full one, cropped to its first entries, as published: right where
        # only time shrinks, but other places than meant where height or width do (maps under 7 cells).
        return self.relative_position_bias_table.t()[:, self.relative_places[:length, :length]]


@dataclass(frozen=True, eq=False)
class WindowPlan:
    """Where the tokens of one size of clip go in one kind of block.

    gather: (W n,) token of each place of each window, windows sorted by kind.  holes: places that are padding, or None.
    scatter: (N,) place of each token.  length: n.  kinds: (how many windows, border mask (n, n) or None) one a kind.
    size: of the clip.
    """

    gather: Tensor
    holes: Tensor | None
    scatter: Tensor
    length: int
    kinds: tuple[tuple[int, Tensor | None], ...]
    size: Size3d


@constant
def plan_windows(size: Size3d, window: Size3d, shifted: bool, device: torch.device) -> WindowPlan:
    """The plan of a block. In a dimension not longer than the window, the window shrinks and nothing shifts."""
    cut: Size3d = tuple(min(s, w) for s, w in zip(size, window, strict=True))  # type: ignore[assignment]
    shift: Size3d = tuple(w // 2 if shifted and s > w else 0 for s, w in zip(size, window, strict=True))  # type: ignore[assignment]
    grid: Size3d = tuple(-(-s // w) for s, w in zip(size, cut, strict=True))  # type: ignore[assignment]  # windows each way
    length = cut[0] * cut[1] * cut[2]

    axes = [(torch.arange(g * w) + s) % (g * w) for g, w, s in zip(grid, cut, shift, strict=True)]  # rolled places
    t, h, w = (axis.view([-1 if i == d else 1 for i in range(3)]) for d, axis in enumerate(axes))
    inside = (t < size[0]) & (h < size[1]) & (w < size[2])
    token = torch.where(inside, (t * size[1] + h) * size[2] + w, -1)
    token = _cut(token, grid, cut)  # (W, n)

    far = [
        torch.arange(g) == g - 1 if s else torch.zeros(g, dtype=torch.bool) for g, s in zip(grid, shift, strict=True)
    ]
    kind = far[0][:, None, None] * 4 + far[1][:, None] * 2 + far[2] * 1
    kind, order = kind.flatten().sort(stable=True)
    token = token[order].flatten()

    holes = (token < 0).nonzero().flatten()
    scatter = torch.empty(size[0] * size[1] * size[2], dtype=torch.long)
    real = (token >= 0).nonzero().flatten()
    scatter[token[real]] = real
    kinds = tuple(
        (int(count), _border_mask(int(number), cut, shift, device))
        for number, count in zip(*kind.unique(return_counts=True), strict=True)
    )
    where = holes.to(device) if len(holes) else None
    return WindowPlan(token.clamp(min=0).to(device), where, scatter.to(device), length, kinds, size)


def _cut(grid_values: Tensor, grid: Size3d, cut: Size3d) -> Tensor:
    """(T, H, W) into windows (W, n)."""
    x = grid_values.view(grid[0], cut[0], grid[1], cut[1], grid[2], cut[2])
    return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, cut[0] * cut[1] * cut[2])


def _border_mask(kind: int, cut: Size3d, shift: Size3d, device: torch.device) -> Tensor | None:
    """(n, n): -100 (as published) between tokens that rolling has brought together from opposite borders."""
    if kind == 0:
        return None
    sides = []
    for bit, length, moved in zip((4, 2, 1), cut, shift, strict=True):
        place = torch.arange(length)
        sides.append(place >= length - moved if kind & bit else torch.zeros(length, dtype=torch.bool))
    region = sides[0][:, None, None] * 4 + sides[1][:, None] * 2 + sides[2] * 1
    region = region.flatten()
    return ((region[:, None] != region) * -100.0).to(device)


def relative_places(window: Size3d) -> Tensor:
    """(n, n) int: the row of the bias table for each pair of a full window's tokens."""
    at = torch.tensor(list(product(*(range(w) for w in window))))  # (n, 3)
    offset = at[:, None] - at[None] + torch.tensor(window) - 1
    rows = torch.tensor([(2 * window[1] - 1) * (2 * window[2] - 1), 2 * window[2] - 1, 1])
    return (offset * rows).sum(-1)
