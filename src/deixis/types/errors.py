"""What a user can set right, in one line."""

from __future__ import annotations

from typing import Any


class DeixisError(ValueError):
    """An error that the user can fix: one line that says what came, what was expected, and what to do.

    Example:
        >>> import deixis
        >>> try:
        ...     deixis.segment("nowhere.mp4", "the dog")
        ... except deixis.DeixisError as error:
        ...     print(error)
        no such file or folder: nowhere.mp4
    """


def reason_of(error: OSError) -> str:
    """Why a file or folder could not be used, in the system's words."""
    return str(error.strerror or error)


def _shape(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if hasattr(value, "shape") else type(value).__name__


def require(condition: bool, name: str, expected: str, got: Any, advice: str = "") -> None:
    """Raise a DeixisError that names the field, what was expected, what came, and what to do."""
    if not condition:
        raise DeixisError(f"{name} must be {expected}, got {_shape(got)}" + (f"; {advice}" if advice else ""))
