"""How scoring runs: files read a few ahead in threads, videos shared among processes."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from deixis.types import DeixisError

AHEAD = 4  # frames read ahead of the one being scored (our choice)
READERS = 1  # threads that decode PNGs ahead of a process that scores (measured: a second one only gets in the way)

Element = TypeVar("Element")


def read_ahead(read: Callable[[int], Element], count: int, pool: ThreadPoolExecutor) -> Iterator[Element]:
    """read(0), read(1), ... in order, a few of them under way in the pool while the current one is used."""
    pending: deque[Future[Element]] = deque()
    try:
        for index in range(count):
            pending.append(pool.submit(read, index))
            if len(pending) > AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


@contextmanager
def mapper(workers: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """``map``, in this process or over several. They are started clean, so that no thread's lock is inherited."""
    if workers < 1:
        raise DeixisError(f"the number of processes must be 1 or more, got {workers}")
    if workers == 1:
        yield map
        return
    context = multiprocessing.get_context(
        "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    )
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(["deixis.metrics.evaluate"])  # type: ignore[attr-defined]
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            yield pool.map
        except BrokenProcessPool as error:
            raise killed(workers) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def killed(workers: int) -> DeixisError:
    """What to say where a process of several was killed."""
    return DeixisError(f"one of {workers} processes was killed; is there memory for so many? take fewer --workers")
