"""A small feature pyramid that turns three fused levels and one raw one into mask features at stride 4.

N frames, D width of the fused levels, h w cells at stride 4.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


class FeaturePyramid(nn.Module):
    """Coarse to fine, halving the width at each step: D, D/2, D/4, D/8, D/16, then ``out`` channels.

    SOC's sizes: 256, 128, 64, 32, 16, 8. GroupNorm, not BatchNorm: a batch is one or two clips, each a single scene.
    """

    def __init__(self, width: int, fine_channels: int, out: int, groups: int = 8) -> None:
        super().__init__()
        widths = [width // 2**i for i in range(5)]
        self.start = ConvNormReLU(width, width, groups)
        self.steps = nn.ModuleList(ConvNormReLU(i, o, groups) for i, o in pairwise(widths))
        self.laterals = nn.ModuleList([nn.Conv2d(width, widths[1], 1), nn.Conv2d(width, widths[2], 1)])
        self.fine = nn.Conv2d(fine_channels, widths[3], 1)
        self.out = nn.Conv2d(widths[4], out, 3, padding=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_uniform_(layer.weight, a=1)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, levels: tuple[Tensor, Tensor, Tensor], fine: Tensor) -> Tensor:
        """(N, out, h, w) from levels (N, D, ., .) at strides 8, 16, 32 and ``fine`` = self.fine(raw) (N, D/8, h, w).

        The lateral of the raw stride-4 map is not fused with words: its caller computes it once a clip.
        """
        x = self.steps[0](self.start(levels[2]))
        x = self.steps[1](_add_upsampled(self.laterals[0](levels[1]), x))
        x = self.steps[2](_add_upsampled(self.laterals[1](levels[0]), x))
        return self.out(self.steps[3](_add_upsampled(fine, x)))


class ConvNormReLU(nn.Module):
    def __init__(self, channels: int, out: int, groups: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, out, 3, padding=1), nn.GroupNorm(groups, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu_()


def _add_upsampled(fine: Tensor, coarse: Tensor) -> Tensor:
    return fine + F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
