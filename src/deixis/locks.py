"""Locks on folders, which end with the process that holds them."""

from __future__ import annotations

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def lock(folder: Path) -> int | None:
    """A lock on a folder that ends with this process; None where the system or the disk has none.

    Raises BlockingIOError where another process holds it.
    """
    if fcntl is None:
        return None
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return handle
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            raise
        return None


def unlock(handle: int | None) -> None:
    """Give a lock back before the process ends."""
    if handle is not None:
        os.close(handle)


def held(folder: Path) -> bool | None:
    """Whether a process holds the lock on a folder; None where that cannot be found out."""
    if not folder.is_dir():
        return False
    try:
        handle = lock(folder)
    except BlockingIOError:
        return True
    unlock(handle)
    return None if handle is None else False
