"""What the pages in docs/ say is run: every command and program on them, in order, in a folder of its own, tiny.

A page is read as blocks. ```bash and ```python blocks run; a ```text block after one is what it prints (numbers may
differ, a line of … stands for any lines). Comments before a block: ``not run: WHY`` (its options are checked all the
same), ``fails: TEXT`` (it ends with status 2 and says TEXT), ``file: PATH`` (the block is that file), ``edit: PATH``
(a ```diff of one added line).
``TINY`` makes commands small. The folder holds the clone as ``deixis``. Run by ``pytest tests/pages``.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import pydoc
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from deixis.cli import app

pytestmark = pytest.mark.pages

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LESSONS = (
    "segment_your_film", "compare_models", "train_on_your_data", "score_results", "add_a_system",
    "add_an_output_format", "how_it_works",
)  # fmt: skip
# What the pages need of a quiet machine for minutes, made small. Replaced in the text of a page's commands.
TINY = {
    "compare_models": {"--films 15 --frames 8": "--films 4 --frames 2 --size 64x96"},
    "train_on_your_data": {
        "my-data --films 20": "my-data --films 5 --size 96 160 --frames 6",
        "-o runs/mine --data folder=my-data": "-o runs/mine --data folder=my-data --set train.steps=2"
        " --set train.batch=1 --set train.workers=0 --set data.frames=2,2,2 --set data.short_sides=96,96,96"
        " --set data.held_out_frames=2",
        "--set train.steps=300": "--set train.steps=2 --set train.batch=2 --set train.workers=0",
        "runs/toy --steps 300": "runs/toy --steps 2",
    },
    "add_a_system": {"--films 30 --frames 12": "--films 4 --frames 2 --size 64x96"},
}
COPIED = ("add_a_system", "add_an_output_format")  # they edit the clone, so they get a copy of it


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. notes: the comments right before it."""

    page: str
    line: int
    language: str
    text: str
    notes: dict[str, str]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    found: list[Block] = []
    notes: dict[str, str] = {}
    fence: tuple[int, str, list[str]] | None = None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if fence is not None:
            if line.rstrip() == "```":
                found.append(Block(page.name, fence[0], fence[1], "\n".join(fence[2]) + "\n", notes))
                fence, notes = None, {}
            else:
                fence[2].append(line)
        elif line.startswith("```"):
            fence = number, line[3:].strip(), []
        elif note := re.fullmatch(r"<!-- (not run|fails|file|edit): (.*) -->", line.strip()):
            notes[note[1]] = note[2]
        elif line.strip():
            notes = {}
    assert fence is None, f"{page}: a block does not end"
    return found


def commands_of(text: str) -> Iterator[list[str]]:
    """The words of each command; continued lines joined, comments left out, && apart."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while "&&" in words:
            at = words.index("&&")
            yield words[:at]
            words = words[at + 1 :]
        if words:
            yield words


# --- running ---------------------------------------------------------------------------------------------------------


class Reader:
    """Someone who does what a page says."""

    def __init__(self, page: str, folder: Path) -> None:
        self.page, self.folder = page, folder
        self.names: dict[str, Any] = {"__name__": "page"}
        self.printed, self.status = "", 0
        self.copied = page in COPIED

    def do(self, block: Block) -> None:
        if "file" in block.notes:
            path = self.folder / block.notes["file"]
            assert path.parent.is_dir(), f"{block}: {path.parent} is not there"
            path.write_text(block.text, encoding="utf-8")
        elif "edit" in block.notes:
            self.edit(block)
        elif "not run" in block.notes:
            for words in commands_of(block.text):
                check_command(words, str(block))
        elif block.language == "text":
            assert_printed(block, self.printed)
        elif block.language == "python":
            self.printed = self.program(block)
        elif block.language == "bash":
            self.printed = ""
            for words in commands_of(tiny(self.page, block.text)):
                self.run(words, block)
            if "fails" in block.notes:
                assert self.status == 2, f"{block}: expected a refusal\n{self.printed}"
                assert block.notes["fails"] in self.printed, f"{block}: {self.printed}"

    def run(self, words: list[str], block: Block) -> None:
        status, said = self.answer(words, block)
        self.printed += said
        self.status = status
        assert status == 0 or (status == 2 and "fails" in block.notes), f"{block}: {' '.join(words)}\n{said}"

    def answer(self, words: list[str], block: Block) -> tuple[int, str]:
        """(exit status, what it prints). In this process where that is the same and saves the start."""
        if words[0] == "deixis" and not self.copied:
            return called(words[1:])
        if words[0] == "python" and words[1].endswith(".py") and not self.copied:
            return self.script(words[1:])
        if words[0] == "deixis":
            words = [sys.executable, "-m", "deixis.cli", *words[1:]]
        elif words[0] == "python":
            words = [sys.executable, *words[1:]]
        assert words[0] in (sys.executable, "cp", "rm", "sed", "echo"), f"{block}: {words[0]} is not run by tests"
        line = shlex.join(words).replace("'>>'", ">>")
        path = str(self.folder / "deixis/src") if self.copied else ""
        env = os.environ | ({"PYTHONPATH": path} if path else {})
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=env, cwd=self.folder)
        return done.returncode, done.stdout + done.stderr

    def script(self, words: list[str]) -> tuple[int, str]:
        before, said = sys.argv, io.StringIO()
        sys.argv = words
        try:
            with contextlib.redirect_stdout(said):
                runpy.run_path(words[0], run_name="__main__")
        finally:
            sys.argv = before
        return 0, said.getvalue()

    def program(self, block: Block) -> str:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(block.text, str(block), "exec"), self.names)
        return said.getvalue()

    def edit(self, block: Block) -> None:
        added, context = block.text.splitlines()
        assert (added[0], context[0]) == ("+", " "), f"{block}: one added line before one that is there"
        path = self.folder / block.notes["edit"]
        lines = path.read_text(encoding="utf-8").splitlines()
        assert lines.count(context[1:]) == 1, f"{block}: {context[1:]!r} is not in {path.name}"
        lines.insert(lines.index(context[1:]), added[1:])
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def called(words: list[str]) -> tuple[int, str]:
    """A command of deixis, in this process."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            given: Any = app(words, standalone_mode=False)
            status = given if isinstance(given, int) else 0
        except click.ClickException as error:
            error.show(said)
            status = error.exit_code
    return status, said.getvalue()


def tiny(page: str, text: str) -> str:
    for long, short in TINY.get(page, {}).items():
        text = text.replace(long, short)
    return text


def assert_printed(block: Block, printed: str) -> None:
    """Every line of the block stands in what was printed, in order, but for numbers; … stands for anything."""
    lines = [shape(line) for line in printed.splitlines()]
    at, gap = 0, True
    for wanted in block.text.splitlines():
        if wanted.strip() == "…":
            gap = True
            continue
        pattern = re.compile(".*".join(re.escape(part) for part in shape(wanted).split("…")))
        place = next((i for i in range(at, len(lines)) if pattern.fullmatch(lines[i])), None)
        assert place is not None, f"{block}: {wanted!r} was not printed:\n{printed}"
        assert gap or place == at, f"{block}: lines before {wanted!r} are not shown:\n{printed}"
        at, gap = place + 1, False


def shape(line: str) -> str:
    return re.sub(r"\d+(\.\d+)?", "0", re.sub(r"\s+", " ", line)).strip()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEIXIS_CACHE", str(tmp_path / ".cache"))
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("page", LESSONS)
def test_a_page_can_be_followed_word_for_word(page: str, place: Path) -> None:
    if page in COPIED:
        left_out = shutil.ignore_patterns(".git", ".venv*", "__pycache__", "*.egg-info", "*cache")
        shutil.copytree(ROOT, place / "deixis", ignore=left_out, symlinks=True)
    else:
        (place / "deixis").symlink_to(ROOT)
    reader = Reader(page, place)
    blocks = blocks_of(DOCS / f"{page}.md")
    assert sum(b.language in ("bash", "python") for b in blocks) >= 2
    for block in blocks:
        is_layout = block.language == "text" and not reader.printed
        if not is_layout:
            reader.do(block)


def test_the_notebook_runs(place: Path) -> None:
    (place / "deixis").symlink_to(ROOT)
    notebook = json.loads((ROOT / "examples/deixis.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    names: dict[str, Any] = {}
    monkey = place / "deixis" / "examples"
    os.chdir(monkey)  # as Jupyter does
    try:
        for number, cell in enumerate(notebook["cells"]):
            assert {"id", "metadata", "source"} <= cell.keys()
            if cell["cell_type"] == "code":
                assert cell["outputs"] == []
                exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    finally:
        os.chdir(place)
    assert names["tracks"][0].present


# --- what is not run is read -----------------------------------------------------------------------------------------


def check_command(words: list[str], where: str) -> None:
    """A line that begins with deixis names a command and options that there are."""
    if "deixis.cli" in words:
        words = ["deixis", *words[words.index("deixis.cli") + 1 :]]
    if words[0] != "deixis" or len(words) == 1:
        return
    command: click.Command = typer.main.get_command(app)
    rest = words[1:]
    while isinstance(command, click.Group):
        assert rest, f"{where}: {' '.join(words)} names no command"
        if rest[0] == "--help":
            return
        found = command.commands.get(rest[0])
        assert found is not None, f"{where}: deixis has no command {rest[0]!r}"
        command, rest = found, rest[1:]
    if "--help" in rest or not rest or "..." in rest:
        return
    try:
        command.make_context(str(command.name), list(rest))
    except click.ClickException as error:
        pytest.fail(f"{where}: {' '.join(words)}: {error.format_message()}")


MANUALS = sorted(path for path in [*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])


@pytest.mark.parametrize("page", MANUALS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_on_a_page_has_the_options_that_it_is_given(page: Path) -> None:
    for block in blocks_of(page):
        if block.language not in ("", "bash", "console"):
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            if line.startswith("deixis ") and not re.search(r"[\[\]|]", line):  # brackets: a synopsis
                for words in commands_of(line):
                    check_command(words, str(block))


@pytest.mark.parametrize("page", MANUALS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_pictures_of_a_page_lead_somewhere(page: Path) -> None:
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors_of(path)):
            wrong.append(target)
    assert wrong == []


def prose_of(page: Path) -> str:
    """A page without its blocks."""
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors_of(page: Path) -> set[str]:
    """The names that a forge gives to headings."""
    heads = re.findall(r"^#+ (.*)$", prose_of(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def test_pictures_are_small_and_have_a_licence_line() -> None:
    licences = (DOCS / "images/LICENSE.md").read_text(encoding="utf-8")
    for picture in (DOCS / "images").iterdir():
        if picture.suffix in (".jpg", ".png", ".svg"):
            assert f"`{picture.name}`" in licences, f"{picture.name} is not in LICENSE.md"
            assert picture.stat().st_size < 200_000 or picture.name in ("demo.jpg",)


API = sorted((DOCS / "api").glob("*.md"))


@pytest.mark.parametrize("page", API, ids=lambda path: path.name)
def test_an_api_page_lists_what_there_is(page: Path) -> None:
    lacking = []
    for block in page.read_text(encoding="utf-8").split("\n::: ")[1:]:
        name, members = block.split()[0], re.search(r"members: \[(.*)\]", block)
        value = pydoc.locate(name)
        lacking += [name] if value is None else []
        lacking += [f"{name}.{part}" for part in members[1].split(", ") if not hasattr(value, part)] if members else []
    assert lacking == []


# --- troubleshooting -------------------------------------------------------------------------------------------------

# Files whose errors are all on the page. A new error in them wants a line there.
NARRATED = (
    "config", "files", "video/__init__", "video/stream", "video/frames", "video/pictures",
    "inference", "sentences", "choosing", "tracks", "linking", "weights", "weights_import", "predict",
    "writers/__init__", "writers/output", "writers/rle", "writers/coco_reader", "writers/encoder",
    "benchmarks/__init__", "benchmarks/opening", "benchmarks/pngs", "benchmarks/results", "benchmarks/expressions",
    "benchmarks/folder", "benchmarks/mevis", "benchmarks/mevis_layout", "benchmarks/world",
    "synthetic/world", "synthetic/world_config", "metrics/folders", "metrics/evaluate", "metrics/by_expression",
    "metrics/by_annotator", "metrics/by_frame", "metrics/parallel",
    "training/recipes/__init__", "training/recipes/folder", "training/labelled_frames", "training/run",
    "training/loop", "training/checkpoint",
    "batch/run", "batch/worker", "batch/forecast", "batch/local", "batch/ray_cluster",
    "web/app", "web/guard", "web/jobs", "web/queue", "web/worker", "web/process",
)  # fmt: skip
# What only a program can cause.
FOR_PROGRAMMERS = ("windows of … frames cannot share", "losses must have the same names always")


def messages_of(file: Path) -> list[tuple[int, str]]:
    """(line, template) of every DeixisError and Problem that a file makes; … stands for what is filled in."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
            if node.func.id in ("DeixisError", "NotFiniteError"):
                found.append((node.lineno, template(node.args[0])))
            elif node.func.id == "Problem" and len(node.args) == 2:
                found.append((node.lineno, template(node.args[1])))
    return [(line, text) for line, text in found if text.strip("…: ")]


def texts_of(file: Path) -> list[str]:
    """Templates of every text of a file: warnings are on the page too, and are made of parts."""
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return [template(node) for node in nodes if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp)]


def template(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return re.sub("…+", "…", "".join(template(part) for part in node.values))
    if isinstance(node, ast.BinOp):
        return re.sub("…+", "…", template(node.left) + template(node.right))
    return "…"


def page_messages() -> dict[str, re.Pattern[str]]:
    """The first cells of the page's tables of messages, as patterns."""
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8").partition("## Films")[2]
    rows = re.findall(r"^\| `(.+?)` \|", text, flags=re.MULTILINE)
    cells = [cell for row in rows for cell in row.split("`, `")]
    return {cell: re.compile(".*".join(re.escape(part.strip(" ")) for part in cell.split("…"))) for cell in cells}


def test_every_error_on_the_page_is_one_that_deixis_raises() -> None:
    raised = [text for file in sorted((ROOT / "src/deixis").rglob("*.py")) for text in texts_of(file)]
    stale = [cell for cell, pattern in page_messages().items() if not any(pattern.search(text) for text in raised)]
    assert stale == []


@pytest.mark.parametrize("file", NARRATED)
def test_every_error_that_a_user_can_cause_is_on_the_page(file: str) -> None:
    patterns = page_messages().values()
    lacking = [
        f"{file}.py:{line}: {text}"
        for line, text in messages_of(ROOT / f"src/deixis/{file}.py")
        if not any(p.search(text) for p in patterns) and not text.startswith(FOR_PROGRAMMERS)
    ]
    assert lacking == [], "add a line for each to docs/troubleshooting.md"
