"""MobileSAM with box prompts: masks for the boxes that the teachers find (labels only, nothing of it ships).

Segment Anything (arXiv:2304.02643, appendix A) with the TinyViT encoder of MobileSAM (arXiv:2306.14289).
N boxes, C channels, h w cells of the image embedding (stride 16).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from frozen import OpenVinoRunner, tiny_vit
from safetensors.torch import load_file
from torch import Tensor, nn

MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)
SHORT_SHARES = (9 / 16, 5 / 8, 11 / 16, 3 / 4, 7 / 8, 1.0)  # of the long side: few shapes, few compilations


def attention(weights: Mapping[str, Tensor], name: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention with 8 heads; its inner width follows from the weights."""

    def project(part: str, x: Tensor) -> Tensor:
        y = F.linear(x, weights[f"{name}.{part}_proj.weight"], weights[f"{name}.{part}_proj.bias"])
        return y.unflatten(-1, (8, -1)).transpose(1, 2)

    y = F.scaled_dot_product_attention(project("q", q), project("k", k), project("v", v))
    return F.linear(y.transpose(1, 2).flatten(2), weights[f"{name}.out_proj.weight"], weights[f"{name}.out_proj.bias"])


def layer_norm(weights: Mapping[str, Tensor], name: str, x: Tensor, epsilon: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], epsilon)


def layer_norm_2d(weights: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return layer_norm(weights, name, x.permute(0, 2, 3, 1), 1e-6).permute(0, 3, 1, 2)


def mlp(weights: Mapping[str, Tensor], name: str, x: Tensor, layers: int = 3) -> Tensor:
    for i in range(layers):
        x = F.linear(x, weights[f"{name}.layers.{i}.weight"], weights[f"{name}.layers.{i}.bias"])
        x = F.relu(x) if i < layers - 1 else x
    return x


@dataclass(frozen=True)
class BoxMasks:
    """Masks for N boxes. logits: (N, h, w) at a quarter of the network's input.  overlap: (N,) predicted IoU.
    stability: (N,) IoU of the masks at logits +1 and -1."""

    logits: Tensor
    overlap: np.ndarray
    stability: np.ndarray


class BoxSegmenter:
    """MobileSAM, prompted with boxes.

    Args:
        weights: The published file ``mobile_sam.fp16.safetensors``.
        side: Long side of the network's input in pixels (1024 as published).
    """

    def __init__(self, weights: Path, side: int = 1024, precision: str = "bf16") -> None:
        published = load_file(weights)
        self.weights = {k: v.float() for k, v in published.items() if not k.startswith("image_encoder.layers")}
        self.side = side
        self.encoder = OpenVinoRunner(Neck(tiny_vit(published), self.weights), precision)

    def frame(self, rgb: np.ndarray) -> tuple[np.ndarray, float]:
        """The network's input (1, 3, H, W), normalised and padded, and the scale from the picture to it."""
        height, width = rgb.shape[:2]
        scale = self.side / max(height, width)
        size = (round(width * scale), round(height * scale))
        resized = cv2.resize(rgb, size, interpolation=cv2.INTER_LINEAR if scale > 1 else cv2.INTER_AREA)
        short = min(size)
        padded = next(round(self.side * s / 32) * 32 for s in SHORT_SHARES if self.side * s >= short - 1)
        canvas = np.zeros((3, padded, self.side) if width >= height else (3, self.side, padded), np.float32)
        normalised = ((resized.astype(np.float32) - MEAN) / STD).transpose(2, 0, 1)
        canvas[:, : size[1], : size[0]] = normalised[:, : canvas.shape[1], : canvas.shape[2]]
        return canvas[None], scale

    @torch.no_grad()
    def __call__(self, rgb: np.ndarray, boxes: np.ndarray, at_once: int = 16) -> tuple[list[np.ndarray], BoxMasks]:
        """Masks of the picture's size for boxes.

        Args:
            rgb: (H, W, 3) uint8.
            boxes: (N, 4) x0, y0, x1, y1 in pixels of the picture.

        Returns:
            N masks (H, W) bool, and their quality.
        """
        pixels, scale = self.frame(rgb)
        (embedding,) = self.encoder(pixels)
        image = torch.from_numpy(embedding)
        outputs = [self.decode(image, torch.as_tensor(boxes[i : i + at_once] * scale).float())
                   for i in range(0, len(boxes), at_once)]  # fmt: skip
        logits, overlap = (torch.cat([o[i] for o in outputs]) for i in (0, 1))
        stable = (logits > 1).sum((-1, -2)) / (logits > -1).sum((-1, -2)).clamp(min=1)
        height, width = rgb.shape[:2]
        inner = logits[:, : math.ceil(height * scale / 4), : math.ceil(width * scale / 4)]
        masks = [cv2.resize(m.numpy(), (width, height), interpolation=cv2.INTER_LINEAR) > 0 for m in inner]
        return masks, BoxMasks(logits, overlap.numpy(), stable.numpy())

    def positions(self, points: Tensor) -> Tensor:
        """Random Fourier features (..., 256) of points (..., 2) in pixels of the input."""
        matrix = self.weights["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
        angle = 2 * math.pi * ((2 * points / self.side - 1) @ matrix)
        return torch.cat([angle.sin(), angle.cos()], dim=-1)

    def decode(self, image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 4h, 4w) logits and (N,) predicted overlaps for boxes (N, 4) in pixels of the input."""
        w, p = self.weights, "mask_decoder"
        corners = self.positions(boxes.view(-1, 2, 2) + 0.5)
        corners = corners + torch.stack([w[f"prompt_encoder.point_embeddings.{i}.weight"][0] for i in (2, 3)])
        n, (rows, columns) = len(boxes), image.shape[-2:]
        output = torch.cat([w[f"{p}.iou_token.weight"], w[f"{p}.mask_tokens.weight"]])
        tokens = torch.cat([output.expand(n, -1, -1), corners], dim=1)
        y, x = (torch.arange(k).float() * 16 + 8 for k in (rows, columns))
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        places = self.positions(grid).flatten(0, 1)[None]
        keys = (image + w["prompt_encoder.no_mask_embed.weight"][0][:, None, None]).flatten(2).transpose(1, 2)
        keys = keys.expand(n, -1, -1)
        queries = tokens
        for i in (0, 1):
            name = f"{p}.transformer.layers.{i}"
            if i == 0:
                queries = attention(w, f"{name}.self_attn", queries, queries, queries)
            else:
                q = queries + tokens
                queries = queries + attention(w, f"{name}.self_attn", q, q, queries)
            queries = layer_norm(w, f"{name}.norm1", queries)
            cross = attention(w, f"{name}.cross_attn_token_to_image", queries + tokens, keys + places, keys)
            queries = layer_norm(w, f"{name}.norm2", queries + cross)
            hidden = F.relu(F.linear(queries, w[f"{name}.mlp.lin1.weight"], w[f"{name}.mlp.lin1.bias"]))
            queries = queries + F.linear(hidden, w[f"{name}.mlp.lin2.weight"], w[f"{name}.mlp.lin2.bias"])
            queries = layer_norm(w, f"{name}.norm3", queries)
            back = attention(w, f"{name}.cross_attn_image_to_token", keys + places, queries + tokens, queries)
            keys = layer_norm(w, f"{name}.norm4", keys + back)
        final = f"{p}.transformer.final_attn_token_to_image"
        queries = queries + attention(w, final, queries + tokens, keys + places, keys)
        queries = layer_norm(w, f"{p}.transformer.norm_final_attn", queries)
        pixels = keys.transpose(1, 2).unflatten(2, (rows, columns))
        up = f"{p}.output_upscaling"
        pixels = F.conv_transpose2d(pixels, w[f"{up}.0.weight"], w[f"{up}.0.bias"], stride=2)
        pixels = F.gelu(layer_norm_2d(w, f"{up}.1", pixels))
        pixels = F.gelu(F.conv_transpose2d(pixels, w[f"{up}.3.weight"], w[f"{up}.3.bias"], stride=2))
        kernel = mlp(w, f"{p}.output_hypernetworks_mlps.0", queries[:, 1])  # the mask for unambiguous prompts
        overlap = mlp(w, f"{p}.iou_prediction_head", queries[:, 0])[:, 0]
        return torch.einsum("nc,nchw->nhw", kernel, pixels), overlap


class Neck(nn.Module):
    """TinyViT and the neck that brings its last map to 256 channels."""

    def __init__(self, encoder: nn.Module, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.encoder = encoder
        self.parts = {k: v for k, v in weights.items() if k.startswith("image_encoder.neck")}

    def forward(self, frames: Tensor) -> Tensor:
        name = "image_encoder.neck"
        x = F.conv2d(self.encoder(frames)[3], self.parts[f"{name}.0.weight"])
        x = layer_norm_2d(self.parts, f"{name}.1", x)
        return layer_norm_2d(self.parts, f"{name}.3", F.conv2d(x, self.parts[f"{name}.2.weight"], padding=1))
