"""One timer for the files of bench/: seconds of a call, the best of several, peak memory, a call in its own process."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable
from typing import Any

import torch


def seconds(
    work: Callable[[], object], device: str | torch.device = "cpu", clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of a call by a clock, the wall's unless given; on a GPU until all of it is computed."""
    began = clock()
    work()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return clock() - began


def best_of(work: Callable[[], object], repeats: int, device: str | torch.device = "cpu", warm_up: int = 1) -> float:
    """The least seconds of ``repeats`` calls, after ``warm_up`` others."""
    return min([seconds(work, device) for _ in range(warm_up + repeats)][warm_up:])


def memory(device: str | torch.device = "cpu", peak: bool = True) -> float:
    """GiB: of the GPU, allocated now or at most so far; of the CPU, the process's resident memory, at most so far."""
    if torch.device(device).type == "cuda":
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def alone(work: Callable[..., None], *given: Any) -> Any:
    """The value that ``work(pipe, *given)`` sends from a process of its own; None where it died."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, *given))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        return None
    finally:
        process.join()
