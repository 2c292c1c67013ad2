"""One process or many (torchrun): rank, device and collective operations."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from deixis.devices import choose_device


@dataclass(frozen=True)
class ProcessGroup:
    """rank: 0..size-1 of this process.  device: where its model lives."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes files and validates."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean of ``values`` over all processes; nan and inf of any process survive in it."""
        if self.size == 1:
            return values
        summed = values.clone()
        dist.all_reduce(summed)
        return summed / self.size

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.size > 1:
            self.mean(torch.zeros(1, device=self.device))


@torch.no_grad()
def rows_of_all(rows: Tensor) -> list[Tensor]:
    """``rows`` of every process, in the order of their ranks, without gradient; of this one alone where it is alone."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [rows.detach()]
    found = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(found, rows.detach().contiguous())
    return found


@contextmanager
def process_group(device: str) -> Iterator[ProcessGroup]:
    """The world of this process: alone, or one of those torchrun started (read from its environment variables)."""
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    here = choose_device(device)
    if here.type == "cuda":
        # Each process of a machine has its own GPU, unless the user named one.
        here = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) if here.index is None else here.index)
        torch.cuda.set_device(here)
    if size == 1:
        yield ProcessGroup(0, 1, here)
        return
    # Two hours, because the others wait while the first process validates.
    dist.init_process_group("nccl" if here.type == "cuda" else "gloo", timeout=timedelta(hours=2))
    try:
        yield ProcessGroup(rank, size, here)
        _leave_together(rank, size)
    finally:
        dist.destroy_process_group()


def _leave_together(rank: int, size: int) -> None:
    # Over the store, not by a collective: a process that closes its connections while a slower one is still inside
    # the last collective can leave that one waiting for ever (measured with gloo on a loaded machine).
    store = dist.distributed_c10d._get_default_store()
    store.set(f"deixis/leaving/{rank}", "1")
    store.wait([f"deixis/leaving/{other}" for other in range(size)], timedelta(hours=2))
