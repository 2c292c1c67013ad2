"""OUT: a folder that results come to, so that none is lost and no half one passes for a whole one.

Items are finished one after the other in ``scratch``, a hidden folder, and come to OUT at the end.

An OUT that does not exist yet: ``scratch`` lies beside it, and OUT appears whole, in one rename.
An OUT that exists is never replaced, for it may be a mounted volume, another disk or a user's working folder:
``scratch`` lies inside it and the items are moved one by one. A journal (``JOURNAL``) is written before the first move
and deleted after the last; items of the same name that were there are set aside until then. A run that finds the
journal of one that was cut off completes its moves first.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from deixis.locks import held, lock, unlock
from deixis.types import DeixisError, reason_of

log = logging.getLogger(__name__)

JOURNAL = ".deixis-incomplete"  # lies in OUT while items are moved into it
INSIDE = ".deixis-part-"  # begins the name of a scratch folder inside OUT
RESCUED = "deixis-rescued-"  # begins the name of a folder of the system's temporary place, where OUT's disk is gone
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
GONE = frozenset(  # what a disk answers that was pulled out, unmounted, cut off, or made read-only while it was used
    getattr(errno, name)
    for name in (
        "EIO", "ENODEV", "ENXIO", "ESTALE", "EROFS", "ENOTCONN", "EHOSTDOWN", "EHOSTUNREACH", "ETIMEDOUT", "EREMOTEIO",
        "ESHUTDOWN", "ENOENT", "EACCES", "EPERM",
    )
    if hasattr(errno, name)
)  # fmt: skip
# What a disk, a share or a system puts into a folder by itself; a folder that holds nothing else counts as empty.
NOT_RESULTS = frozenset({
    "lost+found", "system volume information", "$recycle.bin", "@eadir", "#recycle", "#snapshot", ".snapshot",
    ".snapshots", ".ds_store", ".spotlight-v100", ".fseventsd", ".trashes", ".trash", "thumbs.db", "desktop.ini",
})  # fmt: skip


class Output(AbstractContextManager["Output"]):
    """A folder of results, while it is being made.

    Args:
        out: The folder. It may be a mount point, the working folder, or not exist.
        overwrite: Accept a folder that holds something; items of the same name are replaced.
        keep: After an error, keep the items that were finished before it. Otherwise an error leaves nothing behind, as
            long as the results were not whole.
        all_or_none: Ctrl-C leaves nothing either; otherwise it leaves the items that are finished.
        otherwise: What a person can do about a folder that holds something, for the line that refuses it.

    Attributes:
        scratch: Where items are made; on the same disk as OUT.
        finished: Names of the items that are whole.
        notes: What earlier runs had left in or beside OUT, a line each.
        paths: Places of the finished items in OUT.

    Raises:
        DeixisError: On entry, before any work, where OUT cannot be written to or holds something; on exit, where the
            disk was full or gone. The line names where everything that was finished lies.

    Example:
        >>> from pathlib import Path
        >>> from deixis.writers import Output
        >>> with Output(Path("out")) as output, output.item("note.txt") as path:
        ...     _ = path.write_text("whole")
        >>> Path("out/note.txt").read_text()
        'whole'
    """

    def __init__(
        self,
        out: Path,
        *,
        overwrite: bool = False,
        keep: bool = False,
        all_or_none: bool = False,
        otherwise: str = "give another folder, or --overwrite",
    ) -> None:
        self.out, self.overwrite, self.keep = Path(out).absolute(), overwrite, keep
        self.all_or_none, self.otherwise = all_or_none, otherwise
        self.finished: list[str] = []
        self.notes: list[str] = []
        self._rescued: list[Path] = []

    def check(self) -> None:
        """Refuse, before any work, what can be refused: enter and leave without a trace."""
        with Output(self.out, overwrite=self.overwrite, otherwise=self.otherwise) as first:
            self.notes = first.notes

    def __enter__(self) -> Self:
        if os.path.lexists(self.out) and not self.out.is_dir():
            kind = "a link to nothing" if self.out.is_symlink() and not self.out.exists() else "a file"
            raise DeixisError(f"{self.out} is {kind}; give a folder")
        self.inside = self.out.is_dir()
        place = self.out if self.inside else self.out.parent
        self._made = [p for p in self.out.parents if not p.exists()]
        self._left: list[Path] = []
        try:
            place.mkdir(parents=True, exist_ok=True)
            self._recover()
            if self.inside and not self.overwrite and any(results_in(self.out)):
                noted = "".join(f" ({note})" for note in self.notes)
                raise DeixisError(f"{self.out} exists and is not empty; {self.otherwise}{noted}")
            self.scratch = Path(tempfile.mkdtemp(prefix=INSIDE if self.inside else self._beside, dir=place))
            self._lock = lock(self.scratch)
        except OSError as error:
            self._remove_made()
            raise DeixisError(f"cannot write to {place}: {reason_of(error)}") from error
        return self

    @property
    def _beside(self) -> str:
        """Begins the name of a scratch folder beside OUT."""
        return f".{os.fsdecode(os.fsencode(self.out.name)[:200])}.part-"

    @contextmanager
    def item(self, name: str) -> Iterator[Path]:
        """A place to make the file or folder ``name``; it counts as finished when the block ends without an error."""
        place = self.scratch / f"part-{name}"
        yield place
        os.replace(place, self.scratch / name)
        self.finished.append(name)

    def rescue(self, name: str, make: Callable[[Path], None]) -> Path | None:
        """After an error of the disk: make the file ``name`` once more, where there is room for it.

        That is OUT's disk, without the halves of other items, or else the system's temporary place. Returns where the
        file lies if it is not to come to OUT; None if it is. Raises OSError where no place takes it.
        """
        for half in self.scratch.glob("part-*"):
            remove(half)
        try:
            with self.item(name) as path:
                make(path)
            return None
        except OSError as error:
            log.debug("%s cannot be made in %s: %s", name, self.scratch, error)
            remove(self.scratch / f"part-{name}")
        path = Path(tempfile.mkdtemp(prefix=RESCUED)) / name
        make(path)
        self._rescued.append(path)
        return path

    def failed(self, error: Exception) -> bool:
        """Whether an error is of OUT's disk, which is full or gone."""
        return of_disk(error, self.scratch) is not None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        whole = kind is None or (issubclass(kind, KeyboardInterrupt) and not self.all_or_none)
        try:
            if whole or self.keep:
                self._publish()
        except OSError as problem:
            self._unlock()
            there = [name for name in self.finished if (self.scratch / name).exists()]
            where = f"{', '.join(there)} lie whole in {self.scratch}" if there else "nothing of it could be kept"
            raise DeixisError(
                f"the results cannot be moved to {self.out}: {reason_of(problem)}; {where}{self._elsewhere()}"
            ) from problem
        self._unlock()
        full = of_disk(error, self.scratch) if isinstance(error, Exception) else None  # while the scratch is there
        remove(self.scratch)
        for left in self._left if whole and self.finished else []:
            if held(left) is False:  # it may have been another run's that had not locked it yet
                remove(left)
        if not self.out.exists():
            self._remove_made()
        if full is not None:
            what = "no room left on the disk of" if full else "cannot write any more to"
            raise DeixisError(f"{what} {self.out} ({getattr(error, 'strerror', error)}); {self._kept()}") from error

    def _kept(self) -> str:
        kept = ", ".join(str(path) for path in self.paths if path.exists())
        if not kept and not self._rescued:
            return "nothing was written"
        return (f"what was finished is kept: {kept}" if kept else "") + self._elsewhere()

    def _elsewhere(self) -> str:
        return "".join(f"; {path.name} lies in {path.parent}" for path in self._rescued).removeprefix("; ")

    def _unlock(self) -> None:
        unlock(self._lock)
        self._lock = None

    def _remove_made(self) -> None:
        with contextlib.suppress(OSError):  # the first that is not empty
            for folder in self._made:
                folder.rmdir()

    def _publish(self) -> None:
        """Bring what is finished to OUT."""
        if not self.finished:
            return
        source = self.scratch
        if not self.inside and not os.path.lexists(self.out):
            source = self.scratch / "whole"
            source.mkdir()
            for name in self.finished:
                os.replace(self.scratch / name, source / name)
            try:
                os.rename(source, self.out)
                return
            except OSError as error:  # a disk that moves no folders, or one that came to be there meanwhile
                log.debug("%s cannot become %s in one step: %s", source, self.out, error)
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            move_items(self.out, source, self.scratch / "aside", self.finished)
        except OSError:
            for name in self.finished if source != self.scratch else []:
                with contextlib.suppress(OSError):
                    os.replace(source / name, self.scratch / name)
            raise

    def _recover(self) -> None:
        """Complete the moves of a run that was cut off, and note what others have left."""
        journal = self.out / JOURNAL
        if journal.is_file():
            try:
                source, aside, names = noted_moves(self.out, json.loads(journal.read_text(encoding="utf-8")))
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise DeixisError(
                    f"{self.out} is incomplete, and {JOURNAL} in it cannot be read ({error}); move it away, and what"
                    " you do not trust with it"
                ) from error
            if held(aside.parent):
                raise DeixisError(f"another run is moving its results to {self.out}; wait for it")
            missing = [n for n in names if not ((source / n).exists() or (self.out / n).exists())]
            move_items(self.out, source, aside, names)
            lost = f", except {', '.join(missing)}, which cannot be found any more" if missing else ""
            self._note(f"{self.out}: a run was cut off while its results were moved here; done now{lost}")
            remove(aside.parent)
        beside = self.out.parent.glob(escaped(self._beside) + "*")  # also where OUT came to be since
        for left in sorted([*beside, *self.out.glob(f"{INSIDE}*")]):
            if not left.is_dir() or held(left) is not False:
                continue
            self._left.append(left)
            whole = whole_items(left)
            has = f"whole in it: {', '.join(whole)}" if whole else "nothing in it is whole"
            self._note(f"{left}: left by a run that was cut off; {has}; deleted when this run has finished")

    def _note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)

    @property
    def paths(self) -> list[Path]:
        """Where the finished items lie in OUT."""
        return [self.out / name for name in self.finished]


def disk_refuses(error: Exception) -> bool:
    """Whether an error says that a disk is full, gone or read-only; also in the words of safetensors."""
    number = getattr(error, "errno", None)
    said = re.search(r"os error (\d+)", str(error))
    return (int(said[1]) if number is None and said else number) in NO_ROOM | GONE


def of_disk(error: Exception, scratch: Path) -> bool | None:
    """True where an error says that the disk of ``scratch`` is full, False where it is gone, None for other errors."""
    number = getattr(error, "errno", None)
    if number in NO_ROOM:
        return True
    names = [str(name) for name in (getattr(error, "filename", None), getattr(error, "filename2", None)) if name]
    below = any(name.startswith(str(scratch)) for name in names) or not scratch.is_dir()
    return False if number in GONE and below else None


@contextmanager
def whole_file(out: Path) -> Iterator[Path]:
    """A place to write a file, which becomes ``out`` when the block ends without an error.

    Raises DeixisError at once where ``out`` cannot be written to. It may be a mounted file, below a read-only folder.
    """
    if out.is_dir():
        raise DeixisError(f"{out}: cannot be written, it is a folder; name a file")
    half = out.with_name(f".{out.name}.half")
    try:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            half.touch()
        except OSError:
            if not (out.is_file() and os.access(out, os.W_OK)):
                raise
            half = Path(tempfile.mkdtemp(prefix=RESCUED)) / out.name  # the file alone is ours
        yield half
        try:
            os.replace(half, out)
        except OSError as error:
            log.debug("%s cannot become %s in one step: %s", half, out, error)
            try:
                copy_into(half, out)
            except OSError as last:
                kept, half = half, Path(os.devnull)
                raise DeixisError(f"{out}: cannot be written ({reason_of(last)}); it lies whole in {kept}") from last
    except OSError as error:
        raise DeixisError(f"{out}: cannot be written ({reason_of(error)})") from error
    finally:
        if half != Path(os.devnull):
            remove(half)
            if half.parent.name.startswith(RESCUED):
                remove(half.parent)


def results_in(folder: Path) -> Iterator[Path]:
    """What lies in a folder, without what disks and systems put there, and without what runs that were cut off left."""
    for path in folder.iterdir():
        if not of_system(path.name) and not path.name.startswith(INSIDE) and path.name != f"{JOURNAL}.half":
            yield path


def of_system(name: str) -> bool:
    """Whether a disk, a share or a system puts something of this name into a folder by itself."""
    return name.lower() in NOT_RESULTS or name.startswith((".Trash-", "._"))


def whole_items(scratch: Path) -> list[str]:
    """What was finished in a scratch folder."""
    places = [scratch, scratch / "whole"] if (scratch / "whole").is_dir() else [scratch]
    found = [path.name for place in places for path in place.iterdir()]
    return sorted(name for name in found if not name.startswith(("part-", ".")) and name not in ("aside", "whole"))


def escaped(text: str) -> str:
    """A name as a glob that matches it alone."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)


def move_items(out: Path, source: Path, aside: Path, names: list[str]) -> None:
    """Move items from ``source`` into ``out``, with a journal; may be repeated after it was cut off at any moment.

    Items of the same name go to ``aside``; the caller deletes them when everything has come.
    """
    journal = out / JOURNAL
    half = out / f"{JOURNAL}.half"
    facts = {"from": os.path.relpath(source, out), "aside": os.path.relpath(aside, out), "items": names}
    half.write_text(json.dumps(facts), encoding="utf-8")
    os.replace(half, journal)
    aside.mkdir(exist_ok=True)
    for name in names:
        if os.path.lexists(source / name):
            move_item(source / name, out / name, aside / name)
    journal.unlink()


def noted_moves(out: Path, journal: Any) -> tuple[Path, Path, list[str]]:
    """(source, aside, names) of a journal, as ``move_items`` wrote it.

    Raises ValueError for a journal that names other places than a scratch folder in or beside OUT: its moves would take
    what is not ours, and the folder is deleted after them.
    """
    source, aside = (Path(os.path.normpath(out / journal[key])) for key in ("from", "aside"))
    names = [str(name) for name in journal["items"]]
    scratch = aside.parent
    ours = (scratch.parent == out and scratch.name.startswith(INSIDE)) or (
        scratch.parent == out.parent and scratch.name.startswith(".") and ".part-" in scratch.name
    )
    if not ours or source not in (scratch, scratch / "whole") or any(Path(name).name != name for name in names):
        raise ValueError("it names places that no run makes")
    return source, aside, names


def move_item(source: Path, target: Path, aside: Path) -> None:
    """Move a file or folder to ``target``; what is there goes to ``aside``, unless that is taken already."""
    if os.path.lexists(target) and not os.path.lexists(aside):
        try:
            os.rename(target, aside)
        except OSError as error:  # a mount point, or on another disk
            log.debug("%s cannot be set aside in one step: %s", target, error)
            set_aside(target, aside)
    try:
        os.replace(source, target)
    except OSError as error:
        log.debug("%s cannot become %s in one step: %s", source, target, error)
        copy_into(source, target)
        remove(source)


def set_aside(target: Path, aside: Path) -> None:
    """Set aside what can be moved no more than its contents: a mounted folder stays, and is emptied."""
    if not target.is_dir():
        shutil.copy2(target, aside)
        return
    aside.mkdir()
    for child in list(target.iterdir()):
        shutil.move(child, aside / child.name)


def copy_into(source: Path, target: Path) -> None:
    """Copy a file, or a folder's files, over what is there, folders into folders."""
    if source.is_dir():
        target.mkdir(exist_ok=True)
        for child in source.iterdir():
            copy_into(child, target / child.name)
        return
    half = target.with_name(f".{target.name}.part")
    try:
        shutil.copyfile(source, half)
        os.replace(half, target)
    except OSError:  # the file itself is mounted: its contents alone can be replaced
        remove(half)
        shutil.copyfile(source, target)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there and can be deleted."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
