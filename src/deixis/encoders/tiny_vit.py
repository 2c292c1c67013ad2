"""TinyViT-5M (arXiv:2207.10666), as MobileSAM publishes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from deixis.blocks.attention import check_heads
from deixis.types import DeixisError

TINY_VIT_CHANNELS = (64, 128, 160, 320)


def depthwise(channels: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels)


class InvertedResidual(nn.Module):
    """TinyViT's MBConv: widen fourfold, depthwise convolution, narrow; the activation comes after the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.widen, self.look, self.narrow = (
            nn.Conv2d(channels, 4 * channels, 1),
            depthwise(4 * channels),
            nn.Conv2d(4 * channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + self.narrow(F.gelu(self.look(F.gelu(self.widen(x))))))


class Merge(nn.Module):
    """The step between two stages of TinyViT; stride 2 halves the map, stride 1 keeps it."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.mix, self.look, self.out = (
            nn.Conv2d(channels, out, 1),
            depthwise(out, stride=stride),
            nn.Conv2d(out, out, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.look(F.gelu(self.mix(x)))))


class WindowAttention(nn.Module):
    """Attention inside windows, with a bias learned for each distance |dy|, |dx| and head."""

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = check_heads(channels, heads), window
        self.norm = nn.LayerNorm(channels)
        self.qkv, self.project = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.bias = nn.Parameter(torch.zeros(heads, window * window))
        cells = torch.arange(window * window)
        row, column = cells // window, cells % window
        self.distance: Tensor
        distance = (row[:, None] - row).abs() * window + (column[:, None] - column).abs()
        self.register_buffer("distance", distance, persistent=False)
        self.folded_bias: tuple[tuple, Tensor] | None = None

    def table(self) -> Tensor:
        """The bias as (heads, cells, cells); kept between calls while nothing trains it."""
        if self.bias.requires_grad and torch.is_grad_enabled():
            return self.bias[:, self.distance]
        key = (self.bias._version, self.bias.data_ptr(), self.bias.device)
        if self.folded_bias is None or self.folded_bias[0] != key:
            self.folded_bias = (key, self.bias.detach()[:, self.distance])
        return self.folded_bias[1]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W). The map is padded with zeros to whole windows, as in the original."""
        height, width, side = x.shape[-2], x.shape[-1], self.window
        x = F.pad(x, (0, -width % side, 0, -height % side))
        rows, columns = x.shape[-2] // side, x.shape[-1] // side
        x = rearrange(x, "n c (r a) (k b) -> (n r k) (a b) c", a=side, b=side)
        qkv = rearrange(self.qkv(self.norm(x)), "m s (g j d) -> j m g s d", g=self.heads, j=3)
        bias = self.table().to(qkv.dtype)
        x = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], attn_mask=bias[None])
        x = self.project(rearrange(x, "m g s d -> m s (g d)"))
        x = rearrange(x, "(n r k) (a b) c -> n c (r a) (k b)", r=rows, k=columns, a=side)
        return x[..., :height, :width]


class TinyVitMlp(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.widen, self.narrow = (
            nn.LayerNorm(channels),
            nn.Linear(channels, 4 * channels),
            nn.Linear(4 * channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)"""
        x = x.permute(0, 2, 3, 1)
        return self.narrow(F.gelu(self.widen(self.norm(x)))).permute(0, 3, 1, 2)


class TinyVitBlock(nn.Module):
    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.attention, self.local, self.mlp = (
            WindowAttention(channels, heads, window),
            depthwise(channels),
            TinyVitMlp(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.local(x + self.attention(x))
        return x + self.mlp(x)


class TinyVit(nn.Module):
    """TinyViT-5M as MobileSAM trained it: maps at strides 4, 8, 16, 16 with 64, 128, 160, 320 channels."""

    def __init__(
        self,
        channels: Sequence[int] = TINY_VIT_CHANNELS,
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (2, 4, 5, 10),
        windows: Sequence[int] = (7, 7, 14, 7),
    ) -> None:
        super().__init__()
        half = channels[0] // 2
        self.stem = nn.Sequential(nn.Conv2d(3, half, 3, 2, 1), nn.GELU(), nn.Conv2d(half, channels[0], 3, 2, 1))
        self.stages = nn.ModuleList([nn.Sequential(*(InvertedResidual(channels[0]) for _ in range(depths[0])))])
        self.merges = nn.ModuleList()
        for i in (1, 2, 3):
            self.merges.append(Merge(channels[i - 1], channels[i], stride=2 if i < 3 else 1))
            blocks = (TinyVitBlock(channels[i], heads[i], windows[i]) for _ in range(depths[i]))
            self.stages.append(nn.Sequential(*blocks))

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """frames: (N, 3, H, W), ImageNet-normalised, H and W multiples of 32 -> four maps."""
        x = self.stages[0](self.stem(frames))
        levels = [x]
        for merge, stage in zip(self.merges, list(self.stages)[1:], strict=True):
            x = stage(merge(x))
            levels.append(x)
        return tuple(levels)


def fold(state: Mapping[str, Tensor], conv: str, norm: str, epsilon: float) -> tuple[Tensor, Tensor]:
    """A convolution without bias and the batch norm behind it, as one weight and bias."""
    scale = state[f"{norm}.weight"].double() / (state[f"{norm}.running_var"].double() + epsilon).sqrt()
    weight = state[f"{conv}.weight"].double() * scale[:, None, None, None]
    bias = state[f"{norm}.bias"].double() - state[f"{norm}.running_mean"].double() * scale
    return weight.float(), bias.float()


def tiny_vit_state(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MobileSAM's published encoder keys -> the keys of TinyVit. Left out: the neck, the unused ImageNet head.

    Raises DeixisError naming the first key that is missing.
    """
    ours: dict[str, Tensor] = {}

    def take(name: str, conv_bn: str) -> None:
        ours[f"{name}.weight"], ours[f"{name}.bias"] = fold(published, f"{conv_bn}.c", f"{conv_bn}.bn", 1e-5)

    try:
        take("stem.0", "image_encoder.patch_embed.seq.0")
        take("stem.2", "image_encoder.patch_embed.seq.2")
        for stage, depth in enumerate((2, 2, 6, 2)):
            theirs = f"image_encoder.layers.{stage}"
            if stage < 3:
                for ours_name, n in (("mix", 1), ("look", 2), ("out", 3)):
                    take(f"merges.{stage}.{ours_name}", f"{theirs}.downsample.conv{n}")
            for i in range(depth):
                block, name = f"{theirs}.blocks.{i}", f"stages.{stage}.{i}"
                if stage == 0:
                    for ours_name, n in (("widen", 1), ("look", 2), ("narrow", 3)):
                        take(f"{name}.{ours_name}", f"{block}.conv{n}")
                    continue
                take(f"{name}.local", f"{block}.local_conv")
                ours[f"{name}.attention.bias"] = published[f"{block}.attn.attention_biases"].float()
                pairs = (
                    ("attention.norm", "attn.norm"),
                    ("attention.qkv", "attn.qkv"),
                    ("attention.project", "attn.proj"),
                    ("mlp.norm", "mlp.norm"),
                    ("mlp.widen", "mlp.fc1"),
                    ("mlp.narrow", "mlp.fc2"),
                )
                for here, there in pairs:
                    for part in ("weight", "bias"):
                        ours[f"{name}.{here}.{part}"] = published[f"{block}.{there}.{part}"].float()
    except KeyError as missing:
        raise DeixisError(
            f"MobileSAM weights: key {missing} is missing; expected the published MobileSAM file"
        ) from None
    return ours
