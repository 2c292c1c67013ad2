"""Tensors that depend on sizes alone: made once a size, and kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def constant(function: Callable[P, R]) -> Callable[P, R]:
    """Keep the results of the last 32 calls: bounded, so that films of many sizes do not fill the memory.

    They are made outside inference mode, because a later training step may need them too.
    """

    @lru_cache(maxsize=32)
    def kept(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.inference_mode(False):
            return function(*args, **kwargs)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return kept(*args, **kwargs)  # type: ignore[arg-type]

    return call
