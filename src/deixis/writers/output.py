"""OUT while it is made: hidden beside its place until it is whole; and what writers need of a film."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from av.error import FFmpegError

from deixis.types import DeixisError, Expression

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Source(Protocol):
    """What the writers need of a ``Film``."""

    path: Path
    source_size: tuple[int, int]
    rate: float
    every: int
    end: float
    pixel_aspect: Fraction
    has_audio: bool

    def frames(self) -> Iterator[Any]: ...
    def warn(self, text: str) -> None: ...


class Output(AbstractContextManager["Output"]):
    """OUT, while it is being made.

    Items are finished one after the other in ``scratch``, a hidden folder beside OUT, and moved to OUT when the block
    ends: all of them, or, on Ctrl-C, those that are whole. On any other error nothing is left behind.
    Raises DeixisError at once when OUT exists and holds something (unless ``overwrite``: then items of the same name
    are replaced), and when the disk is full.
    """

    def __init__(self, out: Path, *, overwrite: bool = False) -> None:
        self.out, self.overwrite = Path(out).absolute(), overwrite
        self.finished: list[str] = []

    def __enter__(self) -> Self:
        try:
            if self.out.exists() and not self.out.is_dir():
                raise DeixisError(f"{self.out} is a file; give a folder with -o")
            if self.out.is_dir() and any(self.out.iterdir()) and not self.overwrite:
                raise DeixisError(f"{self.out} exists and is not empty; give another folder, or --overwrite")
            self._made = [p for p in self.out.parents if not p.exists()]
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.scratch = Path(tempfile.mkdtemp(prefix=f".{self.out.name}.part-", dir=self.out.parent))
        except OSError as error:
            raise DeixisError(f"cannot write to {self.out.parent}: {error.strerror}") from error
        return self

    @contextmanager
    def item(self, name: str) -> Iterator[Path]:
        """A place to make the file or folder ``name``; it counts as finished when the block ends without an error."""
        place = self.scratch / f"part-{name}"
        yield place
        os.replace(place, self.scratch / name)
        self.finished.append(name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None or issubclass(kind, KeyboardInterrupt):
                self._publish()
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)
            if not self.out.exists():
                for folder in self._made:
                    folder.rmdir()
        if isinstance(error, OSError | FFmpegError) and error.errno in NO_ROOM:
            raise DeixisError(f"no room left on the disk of {self.out.parent}; nothing was written") from error

    def _publish(self) -> None:
        """Move what is finished to OUT: where nothing is yet, in one step, so that a kill leaves all of it or none."""
        if not self.finished:
            return
        if not self.out.exists() or not (self.out.is_symlink() or any(self.out.iterdir())):
            whole = self.scratch / "whole"
            whole.mkdir()
            if self.out.exists():
                shutil.copymode(self.out, whole)
            for name in self.finished:
                os.replace(self.scratch / name, whole / name)
            os.replace(whole, self.out)
            return
        for name in self.finished:
            place = self.out / name
            if place.is_dir():
                os.replace(place, self.scratch / f"old-{name}")
            os.replace(self.scratch / name, place)

    @property
    def paths(self) -> list[Path]:
        return [self.out / name for name in self.finished]


def slug(expression: Expression, index: int) -> str:
    """A name for files: ``00_a_grey_rhino``."""
    words = "".join(c if c.isalnum() else " " for c in expression.text.lower()).split()
    return f"{index:02d}_" + "_".join(words).encode()[:80].decode(errors="ignore")
