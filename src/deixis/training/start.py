"""Beginning where one of our checkpoints left off: what ``--data start=CHECKPOINT`` does, for every recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from deixis.types import DeixisError
from deixis.weights import EXTRA, load

S = TypeVar("S", bound=nn.Module)


def system_at(start: str | Path, *kinds: type) -> Any:
    """The system of a checkpoint, by name or file. Raises DeixisError if it is none of ``kinds``."""
    system = load(start)
    if not isinstance(system, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise DeixisError(f"--data start={start} is a checkpoint of {type(system).__name__}, expected one of {wanted}")
    return system


def go_on(system: S, start: str | Path) -> S:
    """``system`` with every tensor, tokenizer and all, as the checkpoint has it. Raises DeixisError for a checkpoint
    of another system, and names the tensors where it does not fit."""
    found, own = system_at(start, type(system)).state_dict(), system.state_dict()
    wrong = misfits(own, found)
    if wrong:
        raise DeixisError(
            f"--data start={start} does not fit this model, at {len(wrong)} tensors: {', '.join(wrong[:5])}; "
            "leave out the --set model.* settings that it was not made with"
        )
    system.load_state_dict(found)
    return system


def misfits(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Keys that only one of the two has, then those of another shape; what modules keep as bytes has any length."""
    bent = [k for k in own.keys() & found.keys() if not k.endswith(EXTRA) and own[k].shape != found[k].shape]
    return [*sorted(own.keys() ^ found.keys()), *sorted(bent)]
