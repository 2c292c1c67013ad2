"""A server in a process of its own, for tests: ``running(place, ...)`` yields it and ends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"
START = 600  # seconds that a start may take on a busy machine
LISTENER = """
import json, os, socket, sys
def note(event, facts):
    host = None
    if event == "socket.connect" and isinstance(facts[1], tuple):
        host = facts[1][0]
    elif event == "socket.getaddrinfo":
        host = facts[0]
    if host is not None:
        with open(os.environ["CALLS"], "a") as file:
            file.write(json.dumps([event, str(host)]) + "\\n")
sys.addaudithook(note)
"""


@dataclass
class Server:
    """url: without a slash at its end.  folder: where films and results lie.  process: the server's."""

    url: str
    folder: Path
    process: subprocess.Popen
    log: Path
    calls: Path

    def hosts_called(self) -> set[str]:
        """Every host that the server, or its worker, looked up or connected to."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        return {json.loads(line)[1] for line in lines}


@contextmanager
def running(place: Path, *options: str, model: str = "light_debug") -> Iterator[Server]:
    """``deixis serve`` on a free port, listening to its calls to the outside; ended by SIGTERM."""
    (place / "listener").mkdir(parents=True)
    (place / "listener" / "sitecustomize.py").write_text(LISTENER)
    environment = {
        **os.environ, "PYTHONPATH": f"{place / 'listener'}{os.pathsep}{SOURCE}", "CALLS": str(place / "calls"),
        "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    log = place / "log"
    command = [sys.executable, "-m", "deixis.cli", "serve", "--port", "0", "--model", model, "--device", "cpu"]
    with open(log, "w") as out:
        process = subprocess.Popen(
            [*command, "--folder", str(place / "folder"), *options], stdout=out, stderr=out, env=environment, cwd=place
        )
    try:
        yield Server(_url(log, process), place / "folder", process, log, place / "calls")
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def _url(log: Path, process: subprocess.Popen) -> str:
    end = time.monotonic() + START
    while time.monotonic() < end:
        for line in log.read_text().splitlines():
            if line.startswith("deixis is at "):
                return line.split()[3]
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(f"no server after {START} s: {log.read_text()}")


def until(condition, seconds: float = 400.0):
    """What ``condition`` returns, once that is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s")
