"""Frozen networks through OpenVINO, for the tools; one compiled network a shape of input."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
import openvino as ov
import torch
from torch import Tensor, nn

from deixis.encoders.tiny_vit import TinyVit, tiny_vit_state


def tiny_vit(published: Mapping[str, Tensor]) -> TinyVit:
    """MobileSAM's image encoder from its published keys, frozen."""
    encoder = TinyVit()
    encoder.load_state_dict(tiny_vit_state(published))
    return encoder.eval().requires_grad_(False)


class OpenVinoRunner:
    """A frozen module, run on the CPU by OpenVINO; a network is compiled for each shape it meets, the last 24 kept."""

    def __init__(self, module: nn.Module, precision: str = "bf16", threads: int = 1) -> None:
        self.module, self.core = module.eval(), ov.Core()
        self.options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads,
                        "PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}  # fmt: skip
        self.compiled: dict[tuple[int, ...], ov.InferRequest] = {}

    @torch.no_grad()
    def __call__(self, pixels: np.ndarray) -> list[np.ndarray]:
        if pixels.shape not in self.compiled:
            example = torch.from_numpy(pixels)
            self.module(example)  # fills cached bias tables, which a trace must find ready
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                network = ov.convert_model(self.module, example_input=example)
            network.reshape(list(pixels.shape))
            if len(self.compiled) >= 24:
                self.compiled.pop(next(iter(self.compiled)))
            self.compiled[pixels.shape] = self.core.compile_model(network, "CPU", self.options).create_infer_request()
        return [np.array(x) for x in self.compiled[pixels.shape].infer([pixels]).values()]
