"""Dynamic mask head: each query brings the weights of a network that predicts its mask (CondInst, arXiv:2003.05664).

B clips, T frames, Q queries, C mask channels, P numbers a kernel, h, w cells of the mask.

The inputs of each query's network are the C shared features of a pixel, and its place relative to the query's centre.
A naive rendering copies the features once per query to append those two channels; here the position is a linear term,
so w · (centre - pixel) = w · centre - w · pixel splits into a bias of the query and two features that all queries
share. The first layer is then one matrix product a frame, and nothing is copied.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from deixis.types import require


def kernel_numbers(channels: int, hidden: int = 8, layers: int = 3) -> int:
    """P: how many numbers one query's network has (weights, then biases): 169 for 8 channels, 8 hidden, 3 layers."""
    widths = _widths(channels, hidden, layers)
    return sum(i * o + o for i, o in pairwise(widths))


def predict_masks(
    features: Tensor, kernels: Tensor, centres_xy: Tensor, stride: int, hidden: int = 8, layers: int = 3
) -> Tensor:
    """Mask logits (B, T, Q, h, w) of features (B, T, C, h, w).

    kernels: (B, T, Q, P), the weights of all layers first, output channel by output channel, then all biases; the first
    layer's inputs are the C features, then x and y of (centre - pixel centre), in pixels, not scaled.
    centres_xy: (B, T, Q, 2), in pixels of the frame.  stride: pixels a cell; the centre of cell i lies at
    stride * i + stride // 2.  Computed in fp32 also under autocast: offsets reach hundreds, and bf16 would round them.
    Raises DeixisError for kernels whose P does not fit.
    """
    b, t, c, h, w = features.shape
    q, widths = kernels.shape[2], _widths(c, hidden, layers)
    numbers = kernel_numbers(c, hidden, layers)
    require(kernels.shape[-1] == numbers, "kernels", f"(B, T, Q, {numbers}) for {c} channels", kernels)
    with torch.autocast(features.device.type, enabled=False):
        weights, biases = _split(kernels.float().flatten(0, 2), widths)
        xy = _cell_centres(h, w, stride, features.device)  # (2, h, w)
        middle = xy.new_tensor([w, h]) * (stride / 2)  # offsets are taken from the middle: less cancellation
        shared = torch.cat([features.float().flatten(0, 1), (middle[:, None, None] - xy).expand(b * t, 2, h, w)], dim=1)
        first, towards = weights[0], weights[0][..., c:]  # (BTQ, hidden, C+2), (BTQ, hidden, 2)
        offset = centres_xy.float().flatten(0, 2) - middle  # (BTQ, 2)
        bias = biases[0] + torch.einsum("nod,nd->no", towards, offset)
        first = first.reshape(b * t, q * widths[1], c + 2)
        x = torch.baddbmm(bias.reshape(b * t, q * widths[1], 1), first, shared.flatten(2))
        x = x.view(b * t * q, widths[1], h * w)
        for weight, layer_bias in zip(weights[1:], biases[1:], strict=True):
            x = torch.baddbmm(layer_bias[..., None], weight, x.relu_())
    return x.view(b, t, q, h, w)


def _widths(channels: int, hidden: int, layers: int) -> list[int]:
    return [channels + 2, *[hidden] * (layers - 1), 1]


def _split(kernels: Tensor, widths: list[int]) -> tuple[list[Tensor], list[Tensor]]:
    """(N, P) into one (N, out, in) weight and one (N, out) bias a layer."""
    shapes = list(zip(widths[1:], widths, strict=False))
    parts = kernels.split([o * i for o, i in shapes] + widths[1:], dim=-1)
    weights = [part.unflatten(-1, shape) for part, shape in zip(parts, shapes, strict=False)]
    return weights, list(parts[len(shapes) :])


def _cell_centres(h: int, w: int, stride: int, device: torch.device) -> Tensor:
    """(2, h, w): x and y in pixels of each cell's centre."""
    y = torch.arange(h, device=device, dtype=torch.float32) * stride + stride // 2
    x = torch.arange(w, device=device, dtype=torch.float32) * stride + stride // 2
    return torch.stack([x.expand(h, w), y[:, None].expand(h, w)])
