"""Options of the suite.

The whole suite (no path on the command line) takes a process a core, at most four, where pytest-xdist is installed;
``-n 0`` keeps it in one. With ``--only-skips=FILE`` the run fails on a test that is skipped for a reason that FILE does
not list.
"""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from typer.main import get_command

os.environ.setdefault("DEIXIS_FAST", "0")  # tests of OpenVINO switch it on; a trace for each tiny system costs seconds
SKIPPED: dict[str, str] = {}  # test -> reason, in this run
DEAR = {"listed", "server"}  # fixtures: 24 films segmented, the page's own server started
MOST_PROCESSES = 4  # our choice: each imports torch, half a gigabyte


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Share the whole suite among processes of one thread each. Neighbours stay together: they share fixtures."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    mine = "PYTEST_XDIST_WORKER" not in os.environ  # else this is one of those processes
    if whole and mine and config.pluginmanager.hasplugin("xdist") and config.option.numprocesses is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        config.option.numprocesses = min(cores, MOST_PROCESSES) if cores > 1 else 0
        config.option.dist = "worksteal" if cores > 1 else "no"
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test whose set-up takes more than two seconds is slow, whoever comes first to need it."""
    for item in items:
        if DEAR & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """What the imports have left stays to the end: the garbage collector need not walk through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _commands_are_built_once() -> Iterator[None]:
    """The test runner builds all commands anew at every call, which takes longer than many a command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.testing._get_command", cache(get_command))
        yield


@pytest.fixture(autouse=True)
def _no_curves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the curves of a training takes longer than the small trainings do; tests of them are marked."""
    if request.node.get_closest_marker("curves") is None:
        monkeypatch.setattr("deixis.training.record.draw_curves", lambda lines, path: None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--only-skips", metavar="FILE",
        help="fail on a skip whose reason matches no line of FILE (a regular expression a line; # begins a comment)",
    )  # fmt: skip


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail") and isinstance(report.longrepr, tuple):
        SKIPPED[report.nodeid] = report.longrepr[2].removeprefix("Skipped: ")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped and isinstance(report.longrepr, tuple):
        SKIPPED[report.nodeid] = report.longrepr[2].removeprefix("Skipped: ")


def patterns(file: Path) -> list[str]:
    """The regular expressions of a list of allowed skips."""
    lines = (line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def not_allowed(skipped: dict[str, str], allowed: list[str]) -> list[str]:
    """A line for each test whose reason matches none of the ``allowed`` expressions."""
    return [f"{test}: {reason}" for test, reason in skipped.items() if not any(re.search(p, reason) for p in allowed)]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    listed = session.config.getoption("--only-skips")
    if listed and exitstatus == pytest.ExitCode.OK and not_allowed(SKIPPED, patterns(Path(listed))):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    listed = config.getoption("--only-skips")
    wrong = not_allowed(SKIPPED, patterns(Path(listed))) if listed else []
    if wrong:
        terminalreporter.section("skips that are not on the list", red=True)
        for line in wrong:
            terminalreporter.write_line(line)
        terminalreporter.write_line(f"list a reason in {listed} only where a machine may rightly lack what it names")
