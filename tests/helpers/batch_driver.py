"""Runs batches in a process group of their own and kills it: `batch_driver.py MANIFEST`, a line of stdin a run.

A line is OUT, a tab and ``kill FILMS SECONDS`` (or ``int ...`` for Ctrl-C): when so many films are finished in OUT, and
a moment later, the group gets it; or ``whole`` for a run that is left alone. Answers with what the run said and its
status. Everything is imported once and each run forked from here, on one thread, so that a run begins at once.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import cv2

from deixis.batch import run as run_module
from deixis.batch import storage
from deixis.batch.local import Local
from helpers.batch_films import plan_of

cv2.setNumThreads(1)


def run(manifest: str, out: str) -> int:
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    summary = run_module.batch(plan_of(manifest, out, engine=Local("fork")))
    print(" | ".join(run_module.summary_lines(summary, out)), end=" ", flush=True)
    return 130 if summary.stopped else 0


def main(manifest: str) -> None:
    for order in sys.stdin:
        out, line = order.split("\t")
        child = os.fork()
        if not child:
            os._exit(run(manifest, out))
        what, *when = line.split()
        if what != "whole":
            while len(list(Path(out).glob(f"*/{storage.RESULT}"))) < int(when[0]) or not os.path.exists(out):
                if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    break  # it ended by itself, which the test will notice
                time.sleep(0.002)
            time.sleep(float(when[1]))
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGINT if what == "int" else signal.SIGKILL)
        print(f"\t{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
