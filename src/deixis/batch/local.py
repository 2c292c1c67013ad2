"""Many films on this machine: processes that fill the cores or the GPUs; a killed one's film goes to a new one.

Independent of films: ``make(number)`` builds what works in a worker, ``make(number)(item)`` is an answer.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import connection
from typing import Any, Self

import torch

from deixis.devices import choose_device
from deixis.types import DeixisError

Work = Callable[[Any], Any]
READY, ANSWER, START_REFUSED = "ready", "answer", "refused"  # what a worker says
THREADS_OF = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Local:
    """The engine of one machine. start: how processes are made; tests may ``fork``, which is quicker."""

    def __init__(self, start: str = "spawn") -> None:
        self.start = start

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def allocate(self, device: str, workers: int | None, threads: int | None, items: int) -> tuple[int, int]:
        """(workers, threads of each). By default one worker a GPU, or one a core where there is none; no more than
        there are items. Raises DeixisError for a device that is not there.
        """
        kind, cores = choose_device(device).type, usable_cores()
        fill = {"cuda": torch.cuda.device_count(), "mps": 1}.get(kind, cores)
        workers = max(1, min(fill if workers is None else workers, items))
        return workers, max(1, cores // workers) if threads is None else threads

    def results(
        self, make: Callable[[int], Work], items: Sequence[Any], *, workers: int, threads: int, tries: int
    ) -> Iterator[tuple[int, Any]]:
        """(index of an item, its answer) as they come; the answer is text, the reason, where the item's worker died
        ``tries`` times. Raises what ``make`` refuses as DeixisError. Leaving the generator kills the workers.
        """
        waiting, deaths, stillborn = deque(range(len(items))), Counter[int](), 0
        staff: list[WorkerProcess] = []
        context = multiprocessing.get_context(self.start)
        try:
            while waiting or any(worker.item is not None for worker in staff):
                busy = sum(worker.item is not None for worker in staff)
                while len(staff) < min(workers, busy + len(waiting)):
                    number = min(set(range(workers)) - {worker.number for worker in staff})
                    staff.append(WorkerProcess(context, make, number, threads))
                for worker in staff:
                    if worker.ready and worker.item is None and waiting:
                        worker.give(waiting.popleft(), items)
                ready = connection.wait([worker.pipe for worker in staff])
                for worker in [worker for worker in staff if worker.pipe in ready]:
                    said, content = worker.receive()
                    if said == START_REFUSED:
                        raise DeixisError(content)
                    elif said == READY:
                        worker.ready, stillborn = True, 0
                    elif said == ANSWER and worker.item is not None:
                        index, worker.item = worker.item, None
                        yield index, content
                    else:
                        staff.remove(worker)
                        how = worker.bury()
                        if worker.item is None:
                            stillborn += 1
                            if stillborn >= tries and not staff:
                                raise DeixisError(f"workers die as they start ({how}); is there memory for the model?")
                            if stillborn >= tries:  # room for those that live or are still starting, and no more
                                workers, stillborn = len(staff), 0
                            continue
                        deaths[worker.item] += 1
                        if deaths[worker.item] < tries:
                            waiting.appendleft(worker.item)
                        else:
                            yield worker.item, died(tries, how)
        except BaseException:
            for worker in staff:
                worker.process.kill()
            raise
        finally:
            for worker in staff:
                worker.pipe.close()
            for worker in staff:
                worker.bury()


def died(times: int, how: str = "") -> str:
    """The reason of a film whose workers died."""
    return f"its worker died {times} times" + (f" ({how})" if how else "") + "; is there memory for this film?"


class WorkerProcess:
    """A process that answers one item at a time. item: the index of what it is at; ready: whether it has begun."""

    def __init__(self, context: Any, make: Callable[[int], Work], number: int, threads: int) -> None:
        self.number, self.ready = number, False
        self.item: int | None = None
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=serve_tasks, args=(make, number, theirs), name=f"deixis-{number}", daemon=True
        )
        with _threads_in_environment(threads), _ctrl_c_kept_back():
            self.process.start()
        theirs.close()  # so that the worker's death is the end of the pipe

    def give(self, index: int, items: Sequence[Any]) -> None:
        self.item = index
        with suppress(OSError):  # it has just died; the pipe's end shows it
            self.pipe.send(items[index])

    def receive(self) -> tuple[str, Any]:
        """What it sent; ("", None) when it is dead."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            return "", None

    def bury(self) -> str:
        """Wait until it ends (an idle one ends when its pipe does); how it ended."""
        self.pipe.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        code = self.process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"


def serve_tasks(make: Callable[[int], Work], number: int, pipe: connection.Connection) -> None:
    """A worker's life."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work = make(number)
        pipe.send((READY, None))
        while True:
            pipe.send((ANSWER, work(pipe.recv())))
    except DeixisError as error:
        pipe.send((START_REFUSED, str(error)))
    except (EOFError, BrokenPipeError):
        return


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # in the middle of whatever it does: there is no reader any more


@contextmanager
def _threads_in_environment(threads: int) -> Iterator[None]:
    """For what a worker imports and PyTorch does not rule: NumPy's and SciPy's linear algebra."""
    before = {name: os.environ.get(name) for name in THREADS_OF}
    os.environ.update(dict.fromkeys(THREADS_OF, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _ctrl_c_kept_back() -> Iterator[None]:
    """Processes started meanwhile never get Ctrl-C (a terminal sends it to the whole group): their parent ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
