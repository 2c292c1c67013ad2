"""What the data path calls of a system."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from deixis.types.inputs import Expression
from deixis.types.outputs import FeatureMaps, Prediction


class EncodingSystem(Protocol):
    """What all systems have: a config and ``encode``."""

    config: Any  # a SystemConfig with the system's own fields

    def encode(self, frames: Tensor, padding: Tensor, wanted: Sequence[int] | None = None) -> FeatureMaps:
        """Feature maps of frames (B, T, 3, H, W); no words in them."""
        ...


class System(EncodingSystem, Protocol):
    """What the data path calls of a system: an ``nn.Module`` with a config, ``encode`` and ``decode``.

    ``wanted`` names the frames whose masks are needed; None: all of them.
    """

    def decode(
        self, maps: FeatureMaps, expressions: Sequence[Expression], wanted: Sequence[int] | None = None
    ) -> Prediction:
        """Masks and scores of every expression: one a clip, or any number for one clip."""
        ...


@runtime_checkable
class Accelerated(Protocol):
    """A system with a faster way to run its frozen parts on a CPU, equal up to rounding."""

    def accelerate(self) -> str | None:
        """Take the faster way from now on, where it is installed; what it is called, or None."""
        ...


@runtime_checkable
class RecurrentSystem(EncodingSystem, Protocol):
    """A system that carries a memory from window to window: ``step`` replaces ``decode``, which it need not have."""

    def step(self, maps: FeatureMaps, expressions: Sequence[Expression], memory: Any) -> tuple[Prediction, Any]:
        """The prediction of a window, and the memory for the next one (None before the first)."""
        ...


@runtime_checkable
class TwoPassSystem(RecurrentSystem, Protocol):
    """A recurrent system that reads the whole video once before its first step."""

    def collect(self, maps: FeatureMaps, expressions: Sequence[Expression], memory: Any) -> Any:
        """The memory after one more window of the first pass."""
        ...

    def finalize(self, memory: Any, expressions: Sequence[Expression]) -> Any:
        """The memory that the second pass begins with."""
        ...
