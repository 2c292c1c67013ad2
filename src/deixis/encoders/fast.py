"""Frozen networks on a CPU through OpenVINO, where it is installed (``pip install 'deixis[fast]'``).

PyTorch stays the reference: a network is traced from the module at hand, so both compute the same, up to rounding. A
traced network is kept on disk under a name made of the weights, the shape and the versions; a file that is broken, of
another version or cannot be written costs a new trace, never an error.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import warnings
from collections import OrderedDict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deixis.files import cache_folder

log = logging.getLogger(__name__)

KEPT_SHAPES = 4  # compiled networks kept in memory, one a shape and precision (our choice: about 30 MB each)
KEPT_FILES = 32  # traced networks kept on disk (our choice: about 12 MB each)


def openvino_version() -> str | None:
    """The version of the installed OpenVINO, or None. ``DEIXIS_FAST=0`` in the environment switches it off."""
    if os.environ.get("DEIXIS_FAST", "1") == "0":
        return None
    try:
        return version("openvino")
    except PackageNotFoundError:
        return None


def checksum(place: Path) -> str:
    """Of a traced network's two files."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (".xml", ".bin"):
        digest.update(place.with_suffix(part).read_bytes())
    return digest.hexdigest()


def is_whole(place: Path) -> bool:
    """Whether a traced network is there as it was written; OpenVINO may crash on one that is not."""
    try:
        return place.with_suffix(".sum").read_text() == f"{place.name} {checksum(place)}"
    except (OSError, UnicodeDecodeError):
        return False


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]


class FastNetwork:
    """A frozen module that takes one (N, C, H, W) tensor and returns a tuple of tensors, frame by frame in parallel.

    Args:
        module: In eval mode; its outputs depend on its parameters and the input alone.

    Example:
        >>> network = FastNetwork(system.tiny_vit)          # doctest: +SKIP
        >>> fine, middle, _, deep = network(frames, bf16=False)
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.compiled: OrderedDict[tuple, Any] = OrderedDict()
        self.key: str | None = None
        self.usable = True  # False once OpenVINO could not run it: PyTorch does from then on

    @torch.no_grad()
    def __call__(self, frames: Tensor, *, bf16: bool) -> tuple[Tensor, ...]:
        """What the module returns for frames (N, C, H, W), as fp32 on the CPU. bf16: compute in bf16."""
        threads = torch.get_num_threads()
        key = (*frames.shape[1:], bf16, threads)
        if self.usable and key not in self.compiled:
            try:
                self.compiled[key] = self._compile(frames[:1], bf16, threads)
            except Exception as error:
                log.warning("OpenVINO cannot run %s (%s); PyTorch does", type(self.module).__name__, first_line(error))
                self.usable = False
            if len(self.compiled) > KEPT_SHAPES:
                self.compiled.popitem(last=False)
        if not self.usable:
            return tuple(self.module(frames))
        self.compiled.move_to_end(key)
        return self._run(self.compiled[key], frames, threads)

    @staticmethod
    def _run(network: Any, frames: Tensor, threads: int) -> tuple[Tensor, ...]:
        import openvino as ov

        pixels = np.ascontiguousarray(frames.float().numpy())
        shapes = [tuple(port.shape)[1:] for port in network.outputs]
        outputs = [np.empty((len(pixels), *shape), np.float32) for shape in shapes]

        def keep(request: Any, index: int) -> None:
            for k, output in enumerate(outputs):
                output[index] = request.get_output_tensor(k).data[0]

        queue = ov.AsyncInferQueue(network, threads)
        queue.set_callback(keep)
        for index in range(len(pixels)):
            queue.start_async({0: pixels[index : index + 1]}, index)
        queue.wait_all()
        return tuple(torch.from_numpy(output) for output in outputs)

    def _compile(self, example: Tensor, bf16: bool, threads: int) -> Any:
        import openvino as ov

        core = ov.Core()
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32", "PERFORMANCE_HINT": "THROUGHPUT",
            "NUM_STREAMS": threads, "INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False,
        }  # fmt: skip
        place = cache_folder() / "openvino" / f"{self._name(example)}.xml"
        if is_whole(place):
            try:
                network = core.compile_model(core.read_model(place), "CPU", options)
                os.utime(place)
                return network
            except Exception as error:
                log.info("%s is no traced network of this OpenVINO (%s); it is made anew", place, first_line(error))
        network = self._trace(example)
        self._keep_file(network, place)
        return core.compile_model(network, "CPU", options)

    def _trace(self, example: Tensor) -> Any:
        import openvino as ov

        example = example.float().contiguous()
        with torch.no_grad(), torch.autocast("cpu", enabled=False), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a trace is right for its own shape alone, and is used for that alone
            self.module(example)  # fills the folded bias tables, which a trace must find ready
            network = ov.convert_model(self.module, example_input=example)
        network.reshape(list(example.shape))
        return network

    def _name(self, example: Tensor) -> str:
        if self.key is None:
            digest = hashlib.blake2b(digest_size=12)
            for name, value in sorted(self.module.state_dict().items()):
                if isinstance(value, Tensor):
                    digest.update(name.encode() + str(tuple(value.shape)).encode())
                    digest.update(value.detach().float().contiguous().numpy().tobytes())
            self.key = digest.hexdigest()
        made_by = hashlib.blake2b(f"{openvino_version()}|{torch.__version__}|1".encode(), digest_size=4).hexdigest()
        return f"{type(self.module).__name__}-{self.key}-{'x'.join(str(n) for n in example.shape[1:])}-{made_by}"

    def _keep_file(self, network: Any, place: Path) -> None:
        import openvino as ov

        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=place.parent) as folder:
                beside = Path(folder) / "network.xml"
                ov.save_model(network, beside, compress_to_fp16=False)
                beside.with_suffix(".sum").write_text(f"{place.name} {checksum(beside)}")
                for part in (".bin", ".sum", ".xml"):
                    os.replace(beside.with_suffix(part), place.with_suffix(part))
            kept = sorted(place.parent.glob("*.xml"), key=lambda p: p.stat().st_mtime, reverse=True)
            for old in kept[KEPT_FILES:]:
                for part in (".sum", ".bin", ".xml"):
                    old.with_suffix(part).unlink(missing_ok=True)
        except Exception as error:
            log.info("the traced network is not kept in %s (%s)", place.parent, error)
