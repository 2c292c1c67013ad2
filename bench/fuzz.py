"""Does every hostile input end in success or in one clear line? Counted in cases, reproducible by their numbers.

    python bench/fuzz.py --cases 20000 --json fuzz.json     # in forked children; about 15 minutes on one core
    python bench/fuzz.py --real 500 --json real.json        # through `python -m deixis.cli`, cases spread over the same
    python bench/fuzz.py --case 1234                        # one case again, its inputs kept and named
    python bench/fuzz.py --table fuzz.json real.json        # the tables of docs/reliability.md

A case (``fuzz_inputs.py``) passes when the command ends with status 0, its output whole, or with status 2 and one line
(a wrong option: the usage), within SECONDS and BYTES, without a traceback, and leaves nothing behind: OUT absent or
whole, the temporary folder empty, no thread, nothing written elsewhere. Children are forked from a process that has
imported everything; one serves 500 cases.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import pkgutil
import platform
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

os.environ["OPENCV_LOG_LEVEL"] = "SILENT"  # as the command line itself does before it imports OpenCV

import cv2
import torch
from fuzz_inputs import KINDS, Box, Case, Stock, make
from PIL import Image

import deixis
from deixis.cli import main as deixis_main
from deixis.types import DeixisError
from deixis.writers.rle import read_rle

SECONDS = 20.0  # of processor time in one case; a forked child has nothing to import
WALL = 240.0  # by the clock, for a case that waits for something; other work on the machine may slow it
SECONDS_REAL = 120.0  # of one case through the real command, which imports torch first
BYTES = 1 << 30  # by which resident memory may grow in one case
ADDRESSES = 3 << 30  # by which the address space may grow: beyond it allocations fail
PASSES = ("ok", "refused", "usage")
EACH = 500  # cases a child serves
ELSEWHERE = Path("/tmp/deixis-fuzz-escaped")


NATIVE = re.compile(r"libpng (error|warning)|Corrupt JPEG data|Premature end of JPEG|Invalid SOS|\[ ?(WARN|ERROR):\d")


class OverTime(BaseException):
    """Not an Exception, so that nothing takes it for an error of its own."""


def memory(key: str) -> int:
    """Of this process, in bytes: VmRSS, VmHWM (its peak), VmSize."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(key + ":"))


def run_words(argv: Sequence[str]) -> tuple[int, str]:
    """(status, traceback or "") of the command line in this process; what it prints goes to its stdout and stderr."""
    before = sys.argv
    sys.argv = ["deixis", *argv]
    try:
        deixis_main()
    except SystemExit as end:
        return (end.code if isinstance(end.code, int) else 1 if end.code else 0), ""
    except OverTime:
        return -1, "over time\n" + traceback.format_exc()
    except BaseException:
        return -1, traceback.format_exc()
    finally:
        sys.argv = before
    return 0, ""


def judge(case: Case, box: Box, status: int, error: str, stderr: str) -> tuple[str, str]:
    """(how it ended: ok, refused, usage, or what is wrong; the words for it)."""
    if error:
        last = error.strip().splitlines()[-1]
        return ("hang" if error.startswith("over time") else "traceback"), last + "\n" + error
    if "Traceback (most recent call last)" in stderr:
        return "traceback", stderr
    # What libpng and libjpeg write themselves, from C, is let pass.
    lines = [line for line in stderr.splitlines() if line.strip() and not NATIVE.match(line)]
    if status == 0:
        ended = "ok"
    elif status == 2 and lines and lines[0].startswith("Usage:"):
        ended = "usage"
    elif status == 2 and len(lines) == 1 and lines[0].startswith("deixis: "):
        ended = "refused"
    else:
        return "not one line", f"status {status}: {stderr[:2000]}"
    debris = left_behind(case, box, ended)
    return ("debris", debris) if debris else (ended, lines[0] if lines else "")


def left_behind(case: Case, box: Box, ended: str) -> str:
    """What lies where it should not, in words; "" for nothing."""
    outside = [str(p) for p in (ELSEWHERE, box.root / "escaped", box.root.parent / "escaped") if p.exists()]
    for path in outside:
        shutil.rmtree(path, ignore_errors=True)
        Path(path).unlink(missing_ok=True)
    strangers = sorted(p.name for p in box.root.iterdir() if p.name not in ("given", "place", "temp", "cache"))
    if outside or strangers:
        return f"written elsewhere: {outside or strangers}"
    if any(box.temp.iterdir()):
        return f"temporary files stay: {[str(p.relative_to(box.temp)) for p in box.temp.rglob('*')][:5]}"
    there = sorted(p.name for p in box.place.iterdir())
    wanted = {Path(box.out).name, Path(box.out).name + ".safetensors", Path(box.out).name + ".json"}
    if ended != "ok" and there and not case.resumes:
        return f"refused, but it left {there}"
    if set(there) - wanted and case.argv[0] != "segment":
        return f"beside OUT lies {there}"
    halves = [str(p.relative_to(box.place)) for p in box.place.rglob("*") if p.name.endswith((".half", ".part"))]
    if halves and not case.resumes:
        return f"half-written files stay: {halves[:5]}"
    if case.argv[0] == "segment" and ended == "ok":
        return not_whole(box)
    return ""


def not_whole(box: Box) -> str:
    """What is wrong with the output of a ``segment`` that says it succeeded."""
    hidden = [p.name for p in box.place.rglob(".*.part-*")]
    if hidden:
        return f"the folder of its making stays: {hidden}"
    for path in box.place.rglob("*"):
        try:
            if path.name == "masks.json":
                read_rle(path)
            elif path.suffix == ".png":
                with Image.open(path) as image:
                    image.load()
            elif path.suffix in (".mp4", ".mov") and path.stat().st_size == 0:
                return f"{path.name} is empty"
        except (DeixisError, OSError, SyntaxError, ValueError) as error:
            return f"{path.name} is not whole: {error}"
    return ""


def serve(seed: int, numbers: Sequence[int], stock: Stock, work: Path, report: int, kinds: Sequence[str]) -> None:
    """In a child: the cases one after the other; a line of JSON before and after each goes to ``report``."""
    home = tempfile.gettempdir()
    resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + ADDRESSES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def over_time(number: int, frame: Any) -> None:
        raise OverTime

    signal.signal(signal.SIGALRM, over_time)
    signal.signal(signal.SIGPROF, over_time)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for number in numbers:
        os.write(report, json.dumps({"begins": number}).encode() + b"\n")
        box = Box(root=work / str(number))
        tempfile.tempdir = home  # what making the inputs needs is not the command's
        try:
            case = make(seed, number, box, stock, kinds)
        except Exception:  # the fault is ours, and reported as such
            said = traceback.format_exc().strip().splitlines()[-1] + "\n" + traceback.format_exc()
            line = result_of(number, kind_of(seed, number, kinds), "not made", said)
            shutil.rmtree(box.root, ignore_errors=True)
            os.write(report, json.dumps(line).encode() + b"\n")
            continue
        tempfile.tempdir = str(box.temp)
        os.environ["DEIXIS_CACHE"] = str(box.cache)
        streams = [open(work / name, "w+b") for name in ("stdout", "stderr")]  # noqa: SIM115
        for stream, number_of in zip(streams, (1, 2), strict=True):
            os.dup2(stream.fileno(), number_of)
        sys.stdout = io.TextIOWrapper(os.fdopen(os.dup(1), "wb"), encoding="utf-8", errors="strict")
        sys.stderr = io.TextIOWrapper(
            os.fdopen(os.dup(2), "wb"), encoding="utf-8", errors="backslashreplace", line_buffering=True
        )
        Path("/proc/self/clear_refs").write_text("5")
        held, threads = memory("VmRSS"), threading.active_count()
        spent = time.process_time()
        signal.setitimer(signal.ITIMER_REAL, WALL)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            status, error = run_words(case.argv)
        except OverTime:
            status, error = -1, "over time\n" + traceback.format_exc()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        seconds, grown = time.process_time() - spent, memory("VmHWM") - held
        for wrapper in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                wrapper.close()
        streams[1].seek(0)
        stderr = streams[1].read().decode("utf-8", "replace")
        for stream in streams:
            stream.close()
        ended, said = judge(case, box, status, error, stderr)
        if ended in PASSES and grown > BYTES:
            ended, said = "over memory", f"{grown >> 20} MB more than before; {said}"
        if ended in PASSES and threading.active_count() > threads:
            ended, said = "debris", f"threads stay: {[t.name for t in threading.enumerate()]}"
        result = result_of(number, case.kind, ended, said, seconds, grown >> 20, case.argv)
        shutil.rmtree(box.root, ignore_errors=True)
        os.write(report, json.dumps(result).encode() + b"\n")
        if ended in ("hang", "over memory"):
            os._exit(3)  # a fresh process for the next case


def run_forked(
    seed: int, numbers: Sequence[int], stock: Stock, work: Path, kinds: Sequence[str]
) -> tuple[list[dict[str, Any]], int]:
    """(the result of every case, how many children it took)."""
    results: list[dict[str, Any]] = []
    waiting, children, began = list(numbers), 0, time.perf_counter()
    while waiting:
        read, write = os.pipe()
        children += 1
        child = os.fork()
        if child == 0:
            os.close(read)
            try:
                serve(seed, waiting[:EACH], stock, work, write, kinds)
            except BaseException:
                os.write(write, json.dumps({"broken": traceback.format_exc()}).encode() + b"\n")
                os._exit(4)
            os._exit(0)
        os.close(write)
        current, buffer, hung = None, b"", False
        while True:
            ready, _, _ = select.select([read], [], [], 2 * WALL)
            if not ready:
                os.kill(child, signal.SIGKILL)
                hung = True
            data = os.read(read, 1 << 20)
            if not data:
                break
            buffer += data
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                line = json.loads(line)
                if "begins" in line:
                    current = line["begins"]
                elif "broken" in line:
                    raise RuntimeError(f"case {current}: fuzz itself failed\n{line['broken']}")
                else:
                    results.append(line)
                    waiting.remove(line["case"])
                    current = None
                    if line["ended"] not in PASSES:
                        show(line)
                    if len(results) % 1000 == 0:
                        pace = len(results) / (time.perf_counter() - began)
                        print(f"{len(results)} cases, {pace:.1f} a second", flush=True)
        os.close(read)
        _, status = os.waitpid(child, 0)
        if current is not None:  # it died in this case
            ended = "hang" if hung else "crash"
            said = f"killed by the watchdog after {2 * WALL:g} s" if hung else f"wait status {status}"
            results.append(result_of(current, kind_of(seed, current, kinds), ended, said))
            show(results[-1])
            waiting.remove(current)
            shutil.rmtree(work / str(current), ignore_errors=True)
    return results, children


def result_of(
    number: int, kind: str, ended: str, said: str, seconds: float = 0.0, megabytes: int = 0, argv: Sequence[str] = ()
) -> dict[str, Any]:
    return {
        "case": number, "kind": kind, "ended": ended, "said": said[:4000], "seconds": round(seconds, 3),
        "megabytes": megabytes, "argv": [word[:200] for word in argv],
    }  # fmt: skip


def show(result: dict[str, Any]) -> None:
    first = (result["said"].splitlines() or [""])[0]
    print(f"case {result['case']} {result['kind']}: {result['ended']}: {first}", flush=True)


def kind_of(seed: int, number: int, kinds: Sequence[str]) -> str:
    names = list(kinds or KINDS)
    return Random(f"{seed}:{number}").choices(names, [KINDS[n][0] for n in names])[0]


def run_real(seed: int, numbers: Sequence[int], stock: Stock, work: Path, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """The same through ``python -m deixis.cli``, a process each."""
    results = []
    for number in numbers:
        box = Box(root=work / str(number))
        case = make(seed, number, box, stock, kinds)
        room = {
            **os.environ, "TMPDIR": str(box.temp), "DEIXIS_CACHE": str(box.cache), "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(sys.path), "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),
        }  # fmt: skip
        began, error = time.perf_counter(), ""
        try:
            done = subprocess.run(
                [sys.executable, "-m", "deixis.cli", *case.argv], env=room, stdin=subprocess.DEVNULL,
                capture_output=True, timeout=SECONDS_REAL,
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES + (5 << 30),) * 2),
            )  # fmt: skip
            status, stderr = done.returncode, done.stderr.decode("utf-8", "replace")
        except subprocess.TimeoutExpired:
            status, stderr, error = -1, "", "over time\n"
        seconds = time.perf_counter() - began
        ended, said = judge(case, box, status, error, stderr)
        if status < 0 and not error:
            ended, said = "crash", f"signal {-status}"
        results.append(result_of(number, case.kind, ended, said, seconds, 0, case.argv))
        if ended not in PASSES:
            show(results[-1])
        if len(results) % 50 == 0:
            print(f"{len(results)} cases through the real command", flush=True)
        shutil.rmtree(box.root, ignore_errors=True)
    return results


def show_one(seed: int, number: int, stock: Stock, kinds: Sequence[str]) -> None:
    """Run one case in this process, print all, and keep its inputs."""
    box = Box(root=Path(tempfile.mkdtemp(prefix="deixis-fuzz-case-")) / str(number))
    case = make(seed, number, box, stock, kinds)
    print(f"{case.kind}\ndeixis {' '.join(map(repr, case.argv))}", flush=True)
    tempfile.tempdir = str(box.temp)
    os.environ["DEIXIS_CACHE"] = str(box.cache)
    held = memory("VmRSS")
    began = time.perf_counter()
    status, error = run_words(case.argv)
    print(f"status {status}, {time.perf_counter() - began:.2f} s, {(memory('VmHWM') - held) >> 20} MB\n{error}")
    print(left_behind(case, box, "ok" if status == 0 else "refused") or "nothing left behind")
    print(f"inputs and outputs are kept in {box.root}, the real inputs in {stock.root}")


def facts(seed: int, cases: int, seconds: float, results: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
    here = Path(__file__).parent
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=here)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for result in results:
        counts[result["kind"]][result["ended"]] += 1
    slowest = sorted(results, key=lambda r: -r["seconds"])[:5]
    largest = sorted(results, key=lambda r: -r["megabytes"])[:5]
    return {
        "command": " ".join(["python", "bench/fuzz.py", *sys.argv[1:]]), "commit": commit.stdout.strip(), "seed": seed,
        "cases": cases, "seconds": round(seconds, 1), "python": platform.python_version(), "torch": torch.__version__,
        "cores": len(os.sched_getaffinity(0)), "machine": platform.machine(), "limits": {
            "seconds": SECONDS, "wall": WALL, "seconds_real": SECONDS_REAL, "megabytes": BYTES >> 20,
            "addresses": ADDRESSES >> 20,
        },
        "counts": {kind: dict(counts[kind]) for kind in KINDS if kind in counts},
        "findings": [r for r in results if r["ended"] not in PASSES],
        "slowest": [[r["case"], r["kind"], r["seconds"]] for r in slowest],
        "largest": [[r["case"], r["kind"], r["megabytes"]] for r in largest],
        "refusals": dict(Counter(shape_of(r["said"]) for r in results if r["ended"] == "refused").most_common(60)),
        **more,
    }  # fmt: skip


def shape_of(line: str) -> str:
    """A refusal without what is particular to the case."""
    line = re.sub(r"/\S+", "PATH", line)
    return re.sub(r"\d+", "N", re.sub(r"'[^']*'", "'...'", line))[:90]


ENDS = ("ok", "refused", "usage", "traceback", "crash", "hang", "over memory", "debris", "not one line", "not made")


def table(found: dict[str, Any]) -> str:
    """A run as Markdown."""
    lines = [
        f"`{found['command']}`, commit {found['commit']}, seed {found['seed']}, Python {found['python']}, "
        f"torch {found['torch']}, {found['cores']} core of {found['machine']}, {found['seconds'] / 60:.1f} minutes:",
        "",
        "| kind | cases | " + " | ".join(ENDS) + " |",
        "| --- | --- | " + " | ".join("---" for _ in ENDS) + " |",
    ]
    sums: Counter[str] = Counter()
    for kind, counts in found["counts"].items():
        sums.update(counts)
        lines.append(f"| {kind} | {sum(counts.values())} | " + " | ".join(str(counts.get(e, 0)) for e in ENDS) + " |")
    lines.append(f"| all | {sum(sums.values())} | " + " | ".join(str(sums.get(e, 0)) for e in ENDS) + " |")
    slow, large = found["slowest"][0], found["largest"][0]
    lines += ["", f"The slowest case took {slow[2]:.1f} s ({slow[1]}, number {slow[0]})" + (
        f"; the largest grew by {large[2]} MB ({large[1]}, number {large[0]})." if large[2] else ".")]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="only this one, kept")
    parser.add_argument("--real", type=int, default=0, help="this many, spread over --cases, through the real command")
    parser.add_argument("--kinds", default="", help="only these kinds, semicolons between")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, help="folder for the inputs (default: a temporary one)")
    parser.add_argument("--table", type=Path, nargs="+", help="print the tables of these runs")
    chosen = parser.parse_args()
    if chosen.table:
        print("\n\n".join(table(json.loads(path.read_text())) for path in chosen.table))
        return
    kinds = [k.strip() for k in chosen.kinds.split(";") if k.strip()]
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with contextlib.ExitStack() as stack:
        if chosen.case is not None:
            root = Path(tempfile.mkdtemp(prefix="deixis-fuzz-stock-"))
        else:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="deixis-fuzz-", dir=chosen.work)))
        os.environ["DEIXIS_CACHE"] = str(root / "cache")
        with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
            stock = Stock(root / "stock", run_words)
        assert all(path.is_file() for path in stock.zips.values()), "the real results were not made"
        for module in pkgutil.walk_packages(deixis.__path__, "deixis."):  # a child has nothing to import
            with contextlib.suppress(ImportError):  # what needs an extra
                importlib.import_module(module.name)
        stocked = f"{len(stock.films)} films, {len(stock.pictures)} pictures, {len(stock.benchmarks)} benchmarks"
        print(stocked, flush=True)
        if chosen.case is not None:
            show_one(chosen.seed, chosen.case, stock, kinds)
            return
        work, began = root / "work", time.perf_counter()
        work.mkdir()
        numbers = list(range(chosen.first, chosen.first + chosen.cases))
        if chosen.real:
            numbers = numbers[:: max(1, len(numbers) // chosen.real)][: chosen.real]
            results, children = run_real(chosen.seed, numbers, stock, work, kinds), 0
        else:
            results, children = run_forked(chosen.seed, numbers, stock, work, kinds)
        found = facts(chosen.seed, len(numbers), time.perf_counter() - began, results, children=children)
        print("\n" + table(found))
        if chosen.json:
            chosen.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
