"""Batches for the loop: which sample goes where is a function of (step, micro-batch, rank), never of chance.

Global sample index of item i: ((step * accumulate + micro) * ranks + rank) * batch + i. The loop chooses
``accumulate`` and ``batch`` so that a step holds the run's global batch: a step's samples are the same on any number
of processes; and a resumed run needs no sampler state but its step.
"""

from __future__ import annotations

import contextlib
import random
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset


def seed_everything(*key: int) -> None:
    """Seed torch, numpy and random from a key of whole numbers; different keys give unrelated streams."""
    first, second, third = np.random.SeedSequence(key).generate_state(3)
    torch.manual_seed(int(first))
    np.random.seed(int(second))
    random.seed(int(third))


def sample_indices(step: int, micro: int, rank: int, *, accumulate: int, ranks: int, batch: int) -> list[int]:
    """The global sample indices of one micro-batch on one rank."""
    start = ((step * accumulate + micro) * ranks + rank) * batch
    return list(range(start, start + batch))


class _Samples(Dataset):
    """``samples`` with the generators seeded by the index, so that the number of workers changes nothing."""

    def __init__(self, samples: Callable[[int], Any], seed: int) -> None:
        self.samples, self.seed = samples, seed

    def __getitem__(self, index: int) -> Any:
        seed_everything(self.seed, 1, index)
        return self.samples(index)


class _Plan:
    """The index lists of all micro-batches from ``start`` to ``steps``, in order."""

    def __init__(self, start: int, steps: int, rank: int, accumulate: int, ranks: int, batch: int) -> None:
        self.span, self.rank = range(start, steps), rank
        self.accumulate, self.ranks, self.batch = accumulate, ranks, batch

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.span:
            for micro in range(self.accumulate):
                yield sample_indices(
                    step, micro, self.rank, accumulate=self.accumulate, ranks=self.ranks, batch=self.batch
                )

    def __len__(self) -> int:
        return len(self.span) * self.accumulate


def _prepare_worker(_: int) -> None:
    # The main process decides when to stop: a Ctrl-C or a SIGTERM to the whole group must not take its samples away.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "cv2" in sys.modules:  # its thread pool does not survive a fork
        sys.modules["cv2"].setNumThreads(0)


def _allow_many_open_files() -> None:
    # Every tensor that a worker sends is a file descriptor here until it is freed; 1,024 (the usual limit) is few.
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def micro_batches(
    samples: Callable[[int], Any],
    collate: Callable[[Sequence[Any]], Any],
    *,
    start: int,
    steps: int,
    rank: int,
    ranks: int,
    accumulate: int,
    batch: int,
    seed: int,
    workers: int,
) -> Generator[Any]:
    """Collated micro-batches in order, made ahead by ``workers`` background processes (0: made here, on demand).

    Workers are forked where the system can (Linux), so ``samples`` may be any closure there; elsewhere it must be
    picklable. They must not touch the GPU. Close the generator to end them.
    """
    if workers:
        _allow_many_open_files()
    loader = DataLoader(
        _Samples(samples, seed),
        batch_sampler=_Plan(start, steps, rank, accumulate, ranks, batch),
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=_prepare_worker if workers else None,
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        generator=torch.Generator(),  # its own, so that the loader draws nothing from the global one
    )
    iterator = iter(loader)
    try:
        yield from iterator
    finally:
        if workers:
            _end_workers(iterator)


def _end_workers(iterator: Any) -> None:
    # Explicit, not left to the garbage collector: a worker that outlives the loop would keep the program from ending,
    # because it ignores SIGTERM. The loader waits five seconds for each; one that is still at work then is killed.
    iterator._shutdown_workers()
    for worker in iterator._workers:
        if worker.is_alive():
            worker.kill()
            worker.join()
