"""Many films on a Ray cluster, through Ray Data: a pool of actors, each with a model of its own (extra ``cluster``).

Ray restarts an actor that dies and hands it the same film again; a small actor beside them counts how often each film
was begun, so that one that kills every worker that takes it is given up.
"""

from __future__ import annotations

import json
import logging
import math
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

from deixis.batch.local import Work, died, usable_cores
from deixis.types import DeixisError

STORE_BYTES = 128 * 2**20  # of Ray's object store where we start Ray ourselves: it holds row numbers and lines of text
MOST_BLOCKS = 10_000  # our choice: a block is what Ray hands out, one film up to here


class Cluster:
    """The engine of many machines. address: as ``ray.init`` takes it, ``auto`` or ``HOST:PORT``; None starts Ray here,
    unless the program has done so. Raises DeixisError without Ray, and where no cluster answers.
    """

    def __init__(self, address: str | None = None) -> None:
        try:
            import ray.data
        except ImportError as error:
            raise DeixisError(f"--engine ray needs Ray ({error}): pip install 'deixis[cluster]'") from error
        self.address, self._ray, self._started = address, ray, False
        self._gpus = 0  # that the workers use; known when workers are allocated

    def __enter__(self) -> Self:
        if self._ray.is_initialized():
            return self
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere unasked
        here: dict[str, Any] = {}
        if self.address is not None:
            require_listener(self.address)  # Ray itself tries for minutes
        if self.address is None:
            here = {"num_cpus": usable_cores(), "object_store_memory": STORE_BYTES, "include_dashboard": False}
        try:
            self._ray.init(address=self.address or "local", log_to_driver=False, logging_level=logging.ERROR, **here)
        except Exception as error:  # Ray raises plain ones too, where it is too slow to start
            raise DeixisError(f"no Ray cluster at {self.address or 'this machine'}: {error}") from error
        self._started = True
        return self

    def __exit__(self, *error: object) -> None:
        if self._started:
            self._ray.shutdown()
            self._started = False

    def allocate(self, device: str, workers: int | None, threads: int | None, items: int) -> tuple[int, int]:
        """(workers, threads of each). By default one worker a GPU of the cluster, or one a CPU where there is none; no
        more than there are items. Raises DeixisError where the cluster has no such device.
        """
        kind, cpus = device.split(":")[0], self._cpus()
        self._gpus = int(self._ray.cluster_resources().get("GPU", 0)) if kind in ("auto", "cuda") else 0
        if kind == "cuda" and not self._gpus:
            raise DeixisError("the Ray cluster has no GPU; choose --device cpu or auto")
        workers = max(1, min(workers or self._gpus or cpus, items))
        return workers, threads or max(1, cpus // workers)

    def _cpus(self) -> int:
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def results(
        self, make: Callable[[int], Work], items: Sequence[Any], *, workers: int, threads: int, tries: int
    ) -> Iterator[tuple[int, Any]]:
        """(index of an item, its answer) as they come; the answer is text, the reason, where the item's worker died
        ``tries`` times. Raises what ``make`` refuses as DeixisError.
        """
        data = self._ray.data
        context = data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        starts = self._ray.remote(num_cpus=0)(Starts).remote()
        rows = data.from_items([{"index": i} for i in range(len(items))], override_num_blocks=blocks(len(items)))
        done = rows.map_batches(
            TaskRunner,
            batch_size=1,
            compute=data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
            num_cpus=cpu_share(self._cpus(), workers, threads),
            num_gpus=gpu_share(self._gpus, workers),
            fn_constructor_args=(make, list(items), starts, tries),
        )
        for row in done.iter_rows():
            said = json.loads(row["said"])
            if "refused" in said:
                raise DeixisError(said["refused"])
            yield int(row["index"]), said["answer"]


def require_listener(address: str, seconds: float = 10.0) -> None:
    """Raise DeixisError where an address names a host and a port, and nothing listens there."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        return  # "auto", or of another form of Ray's
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()
    except (OSError, OverflowError) as error:
        raise DeixisError(f"no Ray cluster at {address}: {error}") from error


def blocks(items: int) -> int:
    return max(1, min(items, MOST_BLOCKS))


def cpu_share(cpus: int, workers: int, threads: int) -> float:
    """CPUs of one worker: its threads, or less, so that one CPU (of a single one, half) is left for what feeds the
    workers. Above 1 a whole number, as Ray wants it.
    """
    each = min(threads, (cpus - (1 if cpus > 1 else 0.5)) / workers)
    return int(each) if each >= 1 else max(0.01, math.floor(each * 100) / 100)


def gpu_share(gpus: int, workers: int) -> float:
    """GPUs of one worker: 1, or the part that lets all workers find room."""
    return 1 / math.ceil(workers / gpus) if gpus else 0


class Starts:
    """Counts how often each item was begun and not ended; an actor."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()

    def begin(self, index: int) -> int:
        self._begun[index] += 1
        return self._begun[index]

    def end(self, index: int) -> None:
        self._begun[index] = 0


class TaskRunner:
    """An actor: one item after the other through what ``make`` builds, when the first comes."""

    def __init__(self, make: Callable[[int], Work], items: Sequence[Any], starts: Any, tries: int) -> None:
        self._make, self._items, self._starts, self._tries = make, items, starts, tries
        self._work: Work | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"index": batch["index"], "said": [json.dumps(self._run_task(int(index))) for index in batch["index"]]}

    def _run_task(self, index: int) -> dict[str, Any]:
        import ray

        if ray.get(self._starts.begin.remote(index)) > self._tries:
            answer: Any = died(self._tries)
        else:
            try:
                self._work = self._work or self._make(0)
            except DeixisError as error:
                return {"refused": str(error)}
            answer = self._work(self._items[index])
        ray.get(self._starts.end.remote(index))
        return {"answer": answer}
