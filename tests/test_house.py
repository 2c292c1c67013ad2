"""The house keeps its order: floors (who may import whom), cheap imports, no private paths, no forbidden calls."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from itertools import combinations
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "deixis"
FILES = sorted(path.relative_to(PACKAGE).as_posix().removesuffix(".py") for path in PACKAGE.rglob("*.py"))

# Floors of docs/architecture.md. A folder's floor holds for its files; a file named here has its own.
FLOORS = {
    "types": 0, "tables": 0, "locks": 0,
    "config": 1, "devices": 1, "files": 1, "old_keys": 1, "out_folder": 1, "sentences": 1, "verdicts": 1, "blocks": 1,
    "metrics": 1,
    "encoders": 2, "losses": 2, "video": 2, "linking": 2, "waiting": 2, "selection": 2, "tracks": 2,
    "writers": 2,
    "synthetic": 2,
    "benchmarks/expressions": 2, "benchmarks/samples": 2, "benchmarks/opening": 2, "benchmarks/pngs": 2,
    "benchmarks/results": 2, "benchmarks/fixtures": 2, "benchmarks/mevis_layout": 2,
    "systems": 3, "benchmarks": 3,
    "weights": 4, "weights_import": 4, "metrics/by_expression": 4, "metrics/by_annotator": 4, "metrics/by_frame": 4,
    "inference": 5, "metrics/evaluate": 5, "metrics/folders": 5, "benchmarks/checking": 5,
    "metrics/report": 6, "predict": 6, "choosing": 6, "training": 6, "__init__": 6,
    "progress": 7, "batch": 7, "web": 7, "training/recipes": 7,
    "cli": 8,
}  # fmt: skip


def floor(file: str) -> int:
    for place in (file, folder(file), folder(file).partition("/")[0]):
        if place in FLOORS:
            return FLOORS[place]
    return pytest.fail(f"src/deixis/{file}.py stands on no floor: give it one in FLOORS and in docs/architecture.md")


def folder(file: str) -> str:
    return file.rpartition("/")[0]


def may_import(file: str, other: str) -> bool:
    """Design section 5, in one place."""
    if file.endswith("/__init__") and folder(other).startswith(folder(file)):
        return True  # a package's table of its own files
    mine, theirs = floor(file), floor(other)
    if mine == 1 or (mine == 2 and theirs == 2):
        beside = folder(file) != "" and folder(other) == folder(file) and theirs == mine
        parts = file in ("tracks", "selection") and other in ("linking", "waiting")  # the two rules share these
        return theirs == 0 or beside or parts
    if file in ("weights", "weights_import"):  # files of others are read part by part, our own as a whole
        parts = {"weights": ("systems",), "weights_import": ("systems", "encoders")}[file]
        of_weights = ("weights_import", "encoders/frozen")  # a checkpoint may do without its frozen towers
        low = folder(other) == "types" or other in ("config", "files", "old_keys")
        return low or folder(other) in parts or (file == "weights" and other in of_weights)
    if mine in (0, 6, 7, 8):
        return theirs < mine or (theirs == mine and folder(other) == folder(file))
    return theirs < mine


@cache
def tree(file: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{file}.py").read_text(encoding="utf-8"))


def as_file(module: str) -> str | None:
    """``deixis.losses.terms`` -> ``losses/terms``; None for what is no module of ours."""
    path = module.partition(".")[2].replace(".", "/")
    if module.partition(".")[0] != "deixis":
        return None
    for candidate in (path, f"{path}/__init__".lstrip("/")):
        if candidate in FILES:
            return candidate
    return None


@cache
def imports(file: str) -> list[str]:
    """The modules of deixis that a file imports anywhere, also inside functions."""
    found = []
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            found += [as_file(alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: import by the full name, not relatively"
            for alias in node.names:
                found.append(as_file(f"{node.module}.{alias.name}") or as_file(node.module or ""))
    return [name for name in found if name is not None]


@pytest.mark.parametrize("file", FILES)
def test_a_file_imports_only_from_the_floors_it_may(file):
    wrong = sorted({other for other in imports(file) if other != file and not may_import(file, other)})
    assert wrong == [], f"{file} (floor {floor(file)}) may not import {wrong}"


def test_the_imports_have_no_circle():
    graph = TopologicalSorter({file: {other for other in imports(file) if other != file} for file in FILES})
    graph.prepare()  # raises CycleError, with the files of the circle


@pytest.mark.parametrize(
    ("file", "other", "allowed"),
    [
        ("blocks/attention", "types/__init__", True),
        ("types/masks", "types/errors", True),
        ("types/masks", "tables", False),
        ("blocks/attention", "blocks/positions", True),
        ("blocks/attention", "metrics/overlap", False),
        ("losses/set_loss", "losses/matching", True),
        ("losses/set_loss", "encoders/roberta", False),
        ("tracks", "video", False),
        ("tracks", "linking", True),
        ("linking", "tracks", False),
        ("config", "types/__init__", True),
        ("config", "files", False),
        ("writers/rle", "writers/output", True),
        ("batch/run", "batch/local", True),
        ("batch/run", "cli/__init__", False),
        ("systems/soc", "systems/light", False),
        ("systems/soc", "blocks/fusion", True),
        ("systems/soc", "benchmarks/expressions", True),
        ("benchmarks/mevis", "benchmarks/world", False),
        ("benchmarks/mevis", "benchmarks/mevis_layout", True),
        ("synthetic/world", "synthetic/scene", True),
        ("synthetic/scene", "benchmarks/samples", False),
        ("benchmarks/mevis", "benchmarks/expressions", True),
        ("benchmarks/mevis", "systems/soc", False),
        ("systems/__init__", "systems/soc", True),
        ("weights", "systems/soc", True),
        ("weights", "encoders/roberta", False),
        ("weights", "encoders/frozen", True),
        ("weights_import", "encoders/roberta", True),
        ("weights_import", "weights", False),
        ("metrics/evaluate", "metrics/overlap", True),
        ("metrics/overlap", "metrics/evaluate", False),
        ("inference", "training/loop", False),
        ("training/recipes/soc", "training/loop", True),
        ("training/loop", "training/recipes/soc", False),
        ("metrics/evaluate", "metrics/by_frame", True),
        ("training/loop", "cli/__init__", False),
        ("cli/systems", "training/loop", True),
    ],
)
def test_the_rule_of_floors_itself(file, other, allowed):
    assert may_import(file, other) is allowed


def test_the_nouns_need_only_torch_numpy_opencv_and_pycocotools():
    names = set()
    for node in [node for file in FILES if folder(file) == "types" for node in ast.walk(tree(file))]:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    assert names - set(sys.stdlib_module_names) - {"deixis"} == {"torch", "numpy", "cv2", "pycocotools"}


HEAVY = ("torch", "numpy", "cv2", "av", "transformers", "matplotlib", "scipy")


@pytest.mark.parametrize(
    "program",
    [
        "import deixis",
        "from deixis.cli import app; app(['--help'], standalone_mode=False)",
        "from deixis.cli import app; app(['train', '--help'], standalone_mode=False)",
    ],
    ids=["import deixis", "deixis --help", "deixis train --help"],
)
def test_no_heavy_import_for(program):
    check = f"{program}\nimport sys\nprint('HEAVY', *[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["HEAVY"]


def test_only_the_command_line_prints_and_nothing_exits_pickles_or_catches_everything():
    wrong = []
    for file in FILES:
        for node in ast.walk(tree(file)):
            where = f"{file}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if node.func.id in ("print", "exit", "quit") and floor(file) < 7:
                    wrong.append(f"{where} calls {node.func.id}()")
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                if names == ["UnpicklingError", "pickle"]:
                    continue  # what PyTorch's weights-only reader raises
                banned = {"pickle", "torchvision", "timm", "open_clip"}
                if file == "benchmarks/refcoco_build":
                    banned -= {"pickle"}  # its unpickler has no step that could call anything
                wrong += [f"{where} imports {n}" for n in names if n.partition(".")[0] in banned]
            elif isinstance(node, ast.ExceptHandler):
                caught = node.type.id if isinstance(node.type, ast.Name) else ("" if node.type else "everything")
                if caught in ("Exception", "BaseException", "everything") and not _hands_on(node):
                    wrong.append(f"{where} catches {caught}")
    assert wrong == []


def _hands_on(handler: ast.ExceptHandler) -> bool:
    """Whether the error is raised again, or kept for another thread to raise."""
    body = [node for statement in handler.body for node in ast.walk(statement)]
    used = any(isinstance(node, ast.Name) and node.id == handler.name for node in body)
    return used or any(isinstance(node, ast.Raise) for node in body)


def repository_files() -> list[Path]:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout: no list of what is in the repository")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_place_of_one_machine():
    homes = "|".join(("home", "Users", "work", "root", "mnt", "scratch"))
    place = re.compile(rf"""(?:^|[\s"'`(=:])(?:/(?:{homes})/\w|[A-Z]:\\\w)""", re.MULTILINE)
    wrong = []
    for path in repository_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        wrong += [f"{path.relative_to(ROOT)}: {match.group().strip()}" for match in place.finditer(text)]
    assert wrong == []


def test_every_module_opens_with_what_it_is():
    assert [file for file in FILES if not ast.get_docstring(tree(file))] == []


def test_what_is_no_test_lies_in_helpers() -> None:
    others = {path.name for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("test_")}
    assert others == {"conftest.py"}, "move it to tests/helpers"


def test_only_the_command_line_and_the_front_door_import_deixis_inside_a_function():
    wrong = []
    for file in FILES:
        functions = [n for n in ast.walk(tree(file)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        for node in [inner for function in functions for inner in ast.walk(function)]:
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "deixis":
                wrong.append(f"{file}:{node.lineno} imports {node.module} inside a function")
    assert [line for line in wrong if not line.startswith(("cli/", "__init__:"))] == []


# What every file of a kind has, by design.
SAME_EVERYWHERE = {
    "NAME", "SPLITS", "WHERE", "EXPECTED", "log", "open_split", "splits", "truth", "write_fixture",
    "SYSTEM", "PRESETS", "NEEDS", "FORMAT", "RECIPES", "STATEMENTS",
}  # fmt: skip


def top_level_names(file: str) -> set[str]:
    names = set()
    for node in tree(file).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def test_a_top_level_name_means_one_thing():
    homes: dict[str, list[str]] = {}
    for file in FILES:
        if folder(file) != "cli":  # a command is named like the function behind it
            for name in top_level_names(file):
                homes.setdefault(name, []).append(file)
    twice = {name: files for name, files in homes.items() if len(files) > 1 and name not in SAME_EVERYWHERE}
    assert twice == {}


def test_a_file_outside_systems_has_at_most_450_lines():
    long = {file for file in FILES if len((PACKAGE / f"{file}.py").read_text(encoding="utf-8").splitlines()) > 450}
    assert {file for file in long if folder(file) != "systems"} == set()


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    first = function.body[0] if ast.get_docstring(function) else None
    return (function.end_lineno or 0) - function.lineno + 1 - (0 if first is None else span(first))


def span(node: ast.stmt) -> int:
    return (node.end_lineno or 0) - node.lineno + 1


def test_no_function_is_longer_than_60_lines():
    functions = [
        (f"{file}:{node.lineno} {node.name}", code_lines(node))
        for file in FILES
        for node in ast.walk(tree(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert [where for where, lines in functions if lines > 60] == []


# Files that may hold these words: keys of old files, what people type.
MAY_HOLD_THEM = ("sentences", "old_keys")
BODIES = re.compile(
    r"(?<!-)\b(eyes|ears|hear[sd]?|told|tells?(?!\()|asks?|asked|sees|saw|thinks?|foresees?|by lot|wish(es)?)\b", re.I
)


def test_modules_have_no_eyes_and_no_ears():
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    places = pages + [PACKAGE / f"{file}.py" for file in FILES if file not in MAY_HOLD_THEM]
    wrong = []
    for path in places:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            wrong += [f"{path.relative_to(ROOT)}:{number}: {word.group()}" for word in BODIES.finditer(line)]
    assert wrong == []


MOST_COPIES = 15  # the wanted likenesses of SOC and SOC++ among them


def lines_of_code(file: str) -> list[str]:
    """The lines of a file without imports, docstrings, comments and blank lines."""
    left_out: set[int] = set()
    for node in ast.walk(tree(file)):
        first = node
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if not ast.get_docstring(node):
                continue
            first = node.body[0]
        elif not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        left_out |= set(range(first.lineno, (first.end_lineno or 0) + 1))
    lines = enumerate((PACKAGE / f"{file}.py").read_text(encoding="utf-8").splitlines(), 1)
    bare = [line.partition("  #")[0].strip() for number, line in lines if number not in left_out]
    return [line for line in bare if line and not line.startswith("#")]


def repeated_runs(files: dict[str, list[str]], length: int = 6) -> list[tuple[str, str, str]]:
    """(file, file, first line) of every pair of runs of ``length`` or more equal lines; the longest run counts once."""
    places: dict[tuple[str, ...], list[tuple[str, int]]] = {}
    for file, lines in files.items():
        for i in range(len(lines) - length + 1):
            places.setdefault(tuple(lines[i : i + length]), []).append((file, i))
    found = []
    for (one, i), (other, j) in [pair for where in places.values() for pair in combinations(where, 2)]:
        begins = i == 0 or j == 0 or files[one][i - 1] != files[other][j - 1]
        if begins and (one != other or j - i >= length):
            found.append((one, other, files[one][i]))
    return found


def test_few_runs_of_six_lines_stand_twice() -> None:
    found = repeated_runs({file: lines_of_code(file) for file in FILES})
    assert len(found) <= MOST_COPIES, found


def test_a_repeated_run_is_found_once_and_a_shorter_one_not_at_all() -> None:
    run = [f"line {i}" for i in range(8)]
    assert repeated_runs({"a": ["x", *run], "b": [*run, "y"]}) == [("a", "b", "line 0")]
    assert repeated_runs({"a": run[:5], "b": run[:5]}) == []


def test_a_file_is_at_most_180_lines_long_in_the_median() -> None:
    assert median(len((PACKAGE / f"{file}.py").read_text(encoding="utf-8").splitlines()) for file in FILES) <= 180


def test_a_line_of_the_docs_has_at_most_120_columns_outside_of_tables_and_blocks():
    wrong = []
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))):
        fenced = False
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            fenced ^= line.startswith("```")
            if len(line) > 120 and not fenced and not line.lstrip().startswith(("|", "<", "![")):
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {len(line)} columns")
    assert wrong == []
