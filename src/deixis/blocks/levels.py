"""The levels of a clip in one width, and the positions that attention over them needs.

B clips, T frames, N = B T, C channels, D width, h w cells of a level. Level 0 to 3 are strides 8 to 64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deixis.blocks.deformable import DeformableTransformer, TransformerOutput
from deixis.blocks.pixel_decoder import FeaturePyramid
from deixis.blocks.positions import map_positions, plain_map_positions
from deixis.types import FeatureMaps

LEVEL_STRIDES = (4, 8, 16, 32, 64)  # pixels a cell: the pyramid's fine level, then the four levels in one width


class ProjectLevels(nn.Module):
    """Backbone levels at strides 8, 16, 32 to one width, and a fourth at stride 64 made from the last."""

    def __init__(self, channels: Sequence[int], width: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.ModuleList([nn.Conv2d(c, width, 1) for c in channels])
        self.conv.append(nn.Conv2d(channels[-1], width, 3, stride=2, padding=1))
        self.norm = nn.ModuleList([nn.GroupNorm(groups, width) for _ in self.conv])
        for layer in self.conv.children():
            assert isinstance(layer, nn.Conv2d) and layer.bias is not None  # noqa: PT018
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, levels: Sequence[Tensor], fine: Tensor, padding: Tensor, size: tuple[int, int]) -> FeatureMaps:
        """What is kept of a clip, from three backbone levels (B, T, C, h, w) and the pyramid's fine one, without words.

        padding: (B, T, H, W).  size: (H, W) of the frames.
        """
        sources = [*levels, levels[-1]]
        projected = [
            norm(conv(x.flatten(0, 1))).unflatten(0, x.shape[:2])
            for x, conv, norm in zip(sources, self.conv, self.norm, strict=True)
        ]
        return FeatureMaps((fine, *projected), LEVEL_STRIDES, padding, size)


class ClipTokens:
    """A clip's feature maps as tokens, with positions and padding, ready for attention.

    Positions of maps without padding are constants of their size; padding is read once.
    """

    def __init__(self, maps: FeatureMaps, wanted: Sequence[int] | None = None) -> None:
        if wanted is not None:
            index = list(wanted)
            levels = tuple(level[:, index] for level in maps.levels)
            maps = FeatureMaps(levels, maps.strides, maps.padding[:, index], maps.size)
        self.maps = maps
        self.clips, self.frames = maps.levels[0].shape[:2]
        self.width = maps.levels[1].shape[2]  # D
        self.padded = bool(maps.padding.any())

    def part(self, first: int, last: int) -> ClipTokens:
        """The same clips, frames ``first`` to ``last`` only."""
        maps = self.maps
        cut = FeatureMaps(
            tuple(x[:, first:last] for x in maps.levels), maps.strides, maps.padding[:, first:last], maps.size
        )
        return ClipTokens(cut)

    def parts(self, frames_at_once: int) -> Iterator[ClipTokens]:
        """The scene in parts of at most so many frames over all its clips, in order; in training it stays whole."""
        step = max(1, frames_at_once // self.clips)
        if step >= self.frames or torch.is_grad_enabled():
            yield self
            return
        for first in range(0, self.frames, step):
            yield self.part(first, first + step)

    @property
    def fine(self) -> Tensor:
        """(N, C, h, w): the pyramid's lateral at stride 4."""
        return self.maps.levels[0].flatten(0, 1)

    def shape(self, level: int) -> tuple[int, int]:
        h, w = self.maps.levels[level + 1].shape[-2:]
        return h, w

    def tokens(self, level: int) -> Tensor:
        """(B, T h w, D)."""
        return self.maps.levels[level + 1].permute(0, 1, 3, 4, 2).flatten(1, 3)

    def grid(self, level: int) -> Tensor:
        """(N, h, w, D)."""
        return self.maps.levels[level + 1].permute(0, 1, 3, 4, 2).flatten(0, 1)

    def with_grids(self, grids: Sequence[Tensor]) -> ClipTokens:
        """The same places with other contents: four levels (N, h, w, D)."""
        levels = [x.permute(0, 3, 1, 2).unflatten(0, (self.clips, self.frames)) for x in grids]
        return ClipTokens(
            FeatureMaps((self.maps.levels[0], *levels), self.maps.strides, self.maps.padding, self.maps.size)
        )

    def padding(self, level: int) -> Tensor | None:
        """(N, h, w), or None where nothing is padded."""
        if not self.padded:
            return None
        full = self.maps.padding.flatten(0, 1)[:, None].float()
        return F.interpolate(full, size=self.shape(level))[:, 0].bool()

    def positions(self, level: int) -> Tensor:
        """(N or 1, h, w, D)."""
        padding = self.padding(level)
        if padding is None:
            return plain_map_positions(*self.shape(level), self.width, self.maps.padding.device)
        return map_positions(padding, self.width)

    def clip_positions(self, level: int) -> Tensor:
        """(B or 1, T h w, D)."""
        positions = self.positions(level).flatten(1, 2)  # (N or 1, h w, D)
        if len(positions) == 1 and not self.padded:
            return positions.repeat(1, self.frames, 1)
        return positions.reshape(self.clips, -1, self.width)

    def clip_padding(self, level: int) -> Tensor | None:
        """(B, T h w), or None."""
        padding = self.padding(level)
        return None if padding is None else padding.reshape(self.clips, -1)

    @property
    def size_xy(self) -> Tensor:
        """(B, 1, 1, 2): width and height of the picture inside the padding, in pixels."""
        there = ~self.maps.padding[:, 0]
        return torch.stack([there[:, 0].sum(1), there[:, :, 0].sum(1)], dim=-1).float()[:, None, None]


@dataclass(frozen=True, eq=False)
class FrameDetections:
    """Objects of all frames of a clip; lists run over decoder layers.

    queries: (B, T, Q, D).  references: what entered the layer, (B, T, Q, 2 or 4).  boxes: what left it, (B, T, Q, 4).
    pixels: (B, T, C, h, w) mask features at stride 4.
    """

    queries: tuple[Tensor, ...]
    references: tuple[Tensor, ...]
    boxes: tuple[Tensor, ...]
    pixels: Tensor


def detect_in_frames(
    scene: ClipTokens,
    fuse: Callable[[ClipTokens], Sequence[Tensor]],
    transformer: DeformableTransformer,
    refine: nn.ModuleList,
    pixel_decoder: FeaturePyramid,
    frames_at_once: int,
    content: Tensor | None = None,
) -> FrameDetections:
    """Objects and mask features of every frame. Frames are independent here, so a part of them goes at a time.

    fuse: gives a part's four levels (N, h, w, D), fused with the words.  content: (B, D), what queries start from.
    """
    done: list[tuple[TransformerOutput, Tensor]] = []
    for part in scene.parts(frames_at_once):
        paddings = [part.padding(i) for i in range(4)] if part.padded else None
        start = None
        if content is not None:
            start = content[:, None, None].expand(-1, part.frames, transformer.queries, -1).flatten(0, 1)
        found = transformer(fuse(part), [part.positions(i) for i in range(4)], paddings, refine, start)
        mask_features = pixel_decoder(found.memory[:3], part.fine)
        done.append((found, mask_features.unflatten(0, (part.clips, part.frames))))

    def over_time(name: str) -> tuple[Tensor, ...]:
        parts = zip(*(getattr(found, name) for found, _ in done), strict=True)  # one tuple of parts a layer
        return tuple(torch.cat([p.unflatten(0, (scene.clips, -1)) for p in layer], dim=1) for layer in parts)

    return FrameDetections(  # fp32, like everything after it
        over_time("queries"),
        over_time("references"),
        over_time("boxes"),
        torch.cat([p for _, p in done], dim=1).float(),
    )
