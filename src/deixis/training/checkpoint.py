"""The state of a run on disk: one safetensors file, its facts as JSON in the header, written atomically, no pickles.

Tensors are named by what they are: ``model/NAME`` (the state dict), ``ema/NAME``, ``adam.exp_avg/NAME``,
``adam.exp_avg_sq/NAME``, ``adam.step/NAME``. The facts hold the step and what ``loop.py`` adds. There are no random
states to keep: the generators are seeded anew at every micro-batch from (seed, step, micro-batch, rank).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from deixis.old_keys import fields_of_today, key_of_today
from deixis.training.optimizer import WeightAverage
from deixis.types import DeixisError

TRAINING_FORMAT = "deixis-training-1"
_EXTRA = "_extra_state"  # bytes that a module reads itself, of any length: a tokenizer's settings change with its use
_ADAM = ("step", "exp_avg", "exp_avg_sq")
_FACTS: dict[str, type | tuple[type, ...]] = {  # what a run needs to go on, beside the step
    "name": str, "seconds": (int, float), "best_score": (int, float, type(None)), "counts": dict, "processes": int,
    "config": dict, "train": dict,
}  # fmt: skip


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a checkpoint; a reader, or a crash at any moment, finds the whole old file or the whole new one."""
    # Clones, because safetensors refuses tied weights, and CPU, because the next machine may have no GPU.
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    beside = path.with_name(f".{path.name}.part")
    try:
        save_file(copies, beside, metadata={"format": TRAINING_FORMAT, "facts": json.dumps(facts)})
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on CPU) and the facts of a checkpoint. Raises DeixisError for a file that is not one."""
    facts = read_facts(path)
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118 (not a dict)


def read_facts(path: Path) -> dict[str, Any]:
    """The facts of a checkpoint alone; reads no tensor."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise DeixisError(f"{path} is not a readable training checkpoint ({error})") from error
    if header.get("format") != TRAINING_FORMAT:
        raise DeixisError(f"{path} is not a training checkpoint of this version: expected {TRAINING_FORMAT}")
    try:
        facts = json.loads(header["facts"])
        whole = facts["step"] >= 0
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DeixisError(f"{path} is not a readable training checkpoint: its facts are damaged ({error!r})") from error
    if not whole or type(facts["step"]) is not int:
        raise DeixisError(f"{path} is not a readable training checkpoint: it states step {facts['step']!r:.60}")
    return facts | ({"config": fields_of_today(facts["config"])} if "config" in facts else {})


def check_facts(path: Path, facts: Mapping[str, Any]) -> None:
    """Raise DeixisError unless the facts are of the kinds that a run needs to go on."""
    for name, kind in _FACTS.items():
        if not isinstance(facts.get(name), kind):
            raise DeixisError(f"{path} is not a readable training checkpoint: it states {name} {facts.get(name)!r:.60}")


def pack_state(system: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None) -> dict[str, Tensor]:
    """Everything that training changes, as named tensors."""
    tensors = {f"model/{name}": tensor for name, tensor in system.state_dict().items()}
    for name, parameter in system.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"adam.{key}/{name}"] = value
    if average is not None:
        tensors |= {f"ema/{name}": tensor for name, tensor in average.averages.items()}
    return tensors


def name_of_today(name: str) -> str:
    """``model/KEY``, ``adam.STATE/KEY`` or ``ema/KEY`` with the key of today."""
    part, slash, key = name.partition("/")
    return part + slash + key_of_today(key)


@torch.no_grad()
def unpack_state(
    tensors: Mapping[str, Tensor],
    system: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
) -> None:
    """Put ``pack``'s tensors back. Strict: what is missing or left over raises DeixisError by name."""
    tensors = {name_of_today(name): tensor for name, tensor in tensors.items()}
    model = {name.removeprefix("model/"): t for name, t in tensors.items() if name.startswith("model/")}
    expected = system.state_dict()
    wrong = sorted(
        set(model.keys() ^ expected.keys())
        | {n for n in model.keys() & expected.keys() if model[n].shape != expected[n].shape and not n.endswith(_EXTRA)}
    )
    if wrong:
        raise DeixisError(f"the checkpoint does not fit this model, at {len(wrong)} tensors: {', '.join(wrong[:5])}")
    system.load_state_dict(model)

    trained = [p for group in optimizer.param_groups for p in group["params"]]
    names = {parameter: name for name, parameter in system.named_parameters()}
    for parameter in trained:
        state = {key: tensors.get(f"adam.{key}/{names[parameter]}") for key in _ADAM}
        found = {key: value.to(parameter.device) for key, value in state.items() if value is not None}
        if found and len(found) < len(_ADAM):
            raise DeixisError(f"the checkpoint's optimiser state of {names[parameter]} is incomplete")
        if any(value.shape not in (parameter.shape, torch.Size()) for value in found.values()):
            raise DeixisError(f"the checkpoint's optimiser state of {names[parameter]} has another shape")
        if found:  # a parameter that never had a gradient has no state
            optimizer.state[parameter] = found

    if average is not None:
        for name, value in average.averages.items():
            stored = tensors.get(f"ema/{name}")
            if stored is None:
                raise DeixisError(f"the checkpoint has no average of {name}; it was trained without train.ema")
            if stored.shape != value.shape:
                raise DeixisError(f"the checkpoint's average of {name} has another shape")
            value.copy_(stored)
