"""Where a run computes and how exactly: what ``auto`` becomes, what runs the frozen encoders, and the line for it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from deixis.types import Accelerated, DeixisError

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "fp32", "bf16")


def choose_device(name: str) -> torch.device:
    """auto: cuda, else mps, else cpu. Raises DeixisError for an unknown or absent device."""
    kind = name.split(":")[0]
    if kind not in DEVICES:
        raise DeixisError(f"unknown device {name!r}; expected one of {', '.join(DEVICES)}")
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if kind == "auto":
        return torch.device(next(device for device, is_there in there.items() if is_there))
    if not there[kind]:
        raise DeixisError(f"this machine has no {kind} device that PyTorch can use; choose --device cpu or auto")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise DeixisError(f"unknown device {name!r}; expected one of {', '.join(DEVICES)}, or cuda:N") from error


def choose_precision(name: str, device: torch.device) -> bool:
    """Whether to compute in bf16. auto: on a GPU, and on a CPU that multiplies bf16 itself (elsewhere it is slower)."""
    if name not in PRECISIONS:
        raise DeixisError(f"unknown precision {name!r}; expected one of {', '.join(PRECISIONS)}")
    return name == "bf16" or (name == "auto" and (device.type == "cuda" or (device.type == "cpu" and cpu_has_bf16())))


def cpu_has_bf16() -> bool:
    """Whether this CPU has instructions for bf16 products; False where this PyTorch does not say."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    can = capabilities() if capabilities is not None else {}
    return bool(can.get("avx512_bf16") or can.get("amx_bf16"))


def run_facts(system: nn.Module, device: str = "auto", precision: str = "auto") -> dict[str, str]:
    """{"device", "precision", "engine"} of a run: what ``auto`` became, and what runs the frozen encoders.

    After a run, for an engine that could not run them has given way to PyTorch. Raises DeixisError for a choice that
    cannot be had.
    """
    where = choose_device(device)
    reduced = choose_precision(precision, where)
    version = system.accelerate() if where.type == "cpu" and isinstance(system, Accelerated) else None
    engine = "PyTorch" if version is None else f"OpenVINO {version}"
    return {"device": str(where), "precision": "bf16" if reduced else "fp32", "engine": engine}


def run_words(facts: Mapping[str, str], name: str | None = None) -> str:
    """``run_facts`` in a line, of a model where it is named; PyTorch is not mentioned."""
    of = "" if name is None else f"{name} on "
    engine = "" if facts["engine"] == "PyTorch" else f", {facts['engine']}"
    return f"{of}{facts['device']} in {facts['precision']}{engine}"
