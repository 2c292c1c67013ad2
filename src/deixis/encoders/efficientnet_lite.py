"""EfficientNet-lite2, an image classifier whose middle layers are semantic features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from deixis.encoders.tiny_vit import fold
from deixis.types import DeixisError

EFFICIENT_NET_CHANNELS = (48, 120, 352)


def pad_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """TensorFlow's "same" padding: the odd pixel goes to the right and the bottom."""
    extra = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in (x.shape[-1], x.shape[-2])]
    return F.pad(x, (extra[0] // 2, extra[0] - extra[0] // 2, extra[1] // 2, extra[1] - extra[1] // 2))


class LiteBlock(nn.Module):
    """EfficientNet-lite's MBConv: ReLU6, no squeeze-and-excite."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = channels * expand
        self.kernel, self.stride, self.residual = kernel, stride, stride == 1 and channels == out
        self.widen = nn.Conv2d(channels, wide, 1) if expand > 1 else None
        self.look = nn.Conv2d(wide, wide, kernel, stride, kernel // 2 if stride == 1 else 0, groups=wide)
        self.narrow = nn.Conv2d(wide, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.widen is None else F.relu6(self.widen(x))
        if self.stride > 1:
            y = pad_same(y, self.kernel, self.stride)
        y = self.narrow(F.relu6(self.look(y)))
        return x + y if self.residual else y


# repeats, kernel, stride, expansion, channels of each stage of EfficientNet-lite2
LITE2 = ((1, 3, 1, 1, 16), (3, 3, 2, 6, 24), (3, 5, 2, 6, 48), (4, 3, 2, 6, 88), (4, 5, 1, 6, 120), (5, 5, 2, 6, 208),
         (1, 3, 1, 6, 352))  # fmt: skip


class EfficientNetLite(nn.Module):
    """EfficientNet-lite2: maps at strides 8, 16, 32 and the ImageNet classifier applied at every stride-32 cell."""

    def __init__(self, stages: Sequence[tuple[int, int, int, int, int]] = LITE2, head: int = 1280, names: int = 1000):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2)
        self.blocks = nn.ModuleList()
        channels, stride, last_at, widths = 32, 2, {}, {}
        for repeats, kernel, step, expand, out in stages:
            for i in range(repeats):
                self.blocks.append(LiteBlock(channels, out, kernel, step if i == 0 else 1, expand))
                channels, stride = out, stride * (step if i == 0 else 1)
                last_at[stride], widths[stride] = len(self.blocks) - 1, channels
        if stride != 32 or not {8, 16} <= last_at.keys():
            raise DeixisError(f"the stages of EfficientNet-lite reach strides {sorted(last_at)}, expected 8, 16 and 32")
        self.taken = tuple(last_at[s] for s in (8, 16, 32))
        self.widths = tuple(widths[s] for s in (8, 16, 32))  # channels of the maps
        self.head, self.classify = nn.Conv2d(channels, head, 1), nn.Linear(head, names)

    def forward(self, frames: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """frames: (N, 3, H, W), ImageNet-normalised -> maps at 8, 16, 32, and name logits (N, names, H/32, W/32)."""
        x = F.relu6(self.stem(pad_same(frames, 3, 2)))
        levels = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.taken:
                levels.append(x)
        cells = F.relu6(self.head(x)).permute(0, 2, 3, 1)
        return tuple(levels), self.classify(cells).permute(0, 3, 1, 2)


def efficient_net_state(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """EfficientNet-lite2's published keys -> the keys of EfficientNetLite.

    Raises DeixisError naming the first key that is missing.
    """
    ours: dict[str, Tensor] = {}

    def take(name: str, conv: str, norm: str) -> None:
        ours[f"{name}.weight"], ours[f"{name}.bias"] = fold(published, conv, norm, 1e-3)

    try:
        take("stem", "_conv_stem", "_bn0")
        take("head", "_conv_head", "_bn1")
        for i in range(21):
            theirs = f"_blocks.{i}"
            if i > 0:
                take(f"blocks.{i}.widen", f"{theirs}._expand_conv", f"{theirs}._bn0")
            take(f"blocks.{i}.look", f"{theirs}._depthwise_conv", f"{theirs}._bn1")
            take(f"blocks.{i}.narrow", f"{theirs}._project_conv", f"{theirs}._bn2")
        ours["classify.weight"], ours["classify.bias"] = published["_fc.weight"].float(), published["_fc.bias"].float()
    except KeyError as missing:
        raise DeixisError(
            f"EfficientNet weights: key {missing} is missing; expected the published EfficientNet-lite2 file"
        ) from None
    return ours
