"""OUT in hard places: mounted, the working folder, below a read-only parent, on disks that move nothing, cut off."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.films import moving, write_folder
from safetensors import SafetensorError
from typer.testing import CliRunner

from deixis.benchmarks import ref_davis17, write_fixture
from deixis.cli import app
from deixis.locks import lock
from deixis.out_folder import INSIDE, JOURNAL, Output
from deixis.synthetic.world import write_mevis
from deixis.synthetic.world_config import WorldConfig
from deixis.types import DeixisError

SOURCE = Path(__file__).parents[1] / "src"


def fill(output: Output, text: str = "new", names: tuple[str, ...] = ("masks.json", "masks")) -> Output:
    with output:
        for name in names:
            with output.item(name) as place:
                if "." in name:
                    place.write_text(text)
                else:
                    place.mkdir()
                    (place / f"{text}.png").write_text(text)
    return output


def tree(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


WHOLE = ["masks", "masks.json", "masks/new.png"]


def test_an_out_that_exists_is_not_replaced_under_who_works_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    before = out.stat().st_ino
    monkeypatch.chdir(out)
    fill(Output(Path(".")))
    assert out.stat().st_ino == before
    assert tree(Path(".")) == WHOLE


@pytest.mark.parametrize("way", ["link", "dots", "deep"])
def test_other_names_of_an_out_that_exists_work_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    real = tmp_path / "real"
    (real / "deep").mkdir(parents=True)
    monkeypatch.chdir(real)
    (tmp_path / "link").symlink_to(real / "deep")
    out = {"link": tmp_path / "link", "dots": Path("../real/deep"), "deep": real / "deep"}[way]
    fill(Output(out))
    assert tree(real / "deep") == WHOLE


def refuse(monkeypatch: pytest.MonkeyPatch, place: Path, number: int) -> None:
    """Have the system refuse to rename ``place``, or anything to or from it, as it does with a mount point."""
    for name in ("rename", "replace"):
        plain = getattr(os, name)

        def moved(source, target, plain=plain):
            if place in (Path(source), Path(target)):
                raise OSError(number, os.strerror(number), str(source))
            plain(source, target)

        monkeypatch.setattr(os, name, moved)


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV, errno.EPERM, errno.ENOSYS, errno.ENOTSUP])
@pytest.mark.parametrize("there", ["nothing", "folder", "results"])
def test_what_cannot_be_renamed_is_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, there: str
) -> None:
    out = tmp_path / "out"
    if there != "nothing":
        out.mkdir()
    if there == "results":
        fill(Output(out, overwrite=True), "old")
    refuse(monkeypatch, out, number)
    fill(Output(out, overwrite=True))
    assert tree(tmp_path) == ["out", *(f"out/{name}" for name in WHOLE)]


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV])
@pytest.mark.parametrize("item", ["masks", "masks.json"])
def test_an_item_that_is_a_mount_point_gets_new_contents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, item: str
) -> None:
    out = tmp_path / "out"
    fill(Output(out), "old")
    refuse(monkeypatch, out / item, number)
    fill(Output(out, overwrite=True))
    assert tree(out) == WHOLE
    assert (out / "masks.json").read_text() == "new"


def test_a_disk_that_takes_the_work_but_not_the_results_leaves_them_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def refused(*arguments: object) -> None:
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr("deixis.out_folder.move_items", refused)
    out.mkdir()
    with pytest.raises(DeixisError, match=r"cannot be moved to .*: I/O error; masks.json, masks lie whole") as caught:
        fill(Output(out))
    (scratch,) = out.glob(f"{INSIDE}*")
    assert str(scratch) in str(caught.value)
    assert (scratch / "masks.json").read_text() == "new"


@pytest.mark.parametrize("out", ["out", "a/b/out"])
def test_a_parent_that_is_read_only_is_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    def refused(*arguments: object, **named: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.mkdtemp", refused)
    with pytest.raises(DeixisError, match=f"cannot write to {(tmp_path / out).parent}: Read-only file system"):
        Output(tmp_path / out).check()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["lost+found", ".Trash-0", ".DS_Store", "._x", "System Volume Information"])
def test_what_a_disk_puts_into_its_top_folder_does_not_count_as_results(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    fill(Output(tmp_path))
    assert set(tree(tmp_path)) == {name, *WHOLE}


def test_a_name_as_long_as_the_disk_takes_is_taken(tmp_path: Path) -> None:
    for name in ("x" * 255, "é" * 127, ".", "-", "a b", "out[1]", "*"):
        fill(Output(tmp_path / name / ".." / name if name == "." else tmp_path / name, overwrite=True))
    assert (tmp_path / ("x" * 255) / "masks.json").is_file()


# --- cut off --------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Not even ``finally`` runs after it: the test makes ``__exit__`` stop there."""


def cut_off(out: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Publish into ``out`` until so many renames are done, and leave everything as it is then."""
    count = [0]
    with monkeypatch.context() as patch:
        for name in ("rename", "replace"):
            plain = getattr(os, name)

            def moved(source, target, plain=plain):
                if JOURNAL not in str(target) and INSIDE not in Path(target).name and "part-" not in Path(source).name:
                    if count[0] == after:
                        raise Killed
                    count[0] += 1
                plain(source, target)

            patch.setattr(os, name, moved)
        patch.setattr("deixis.out_folder.remove", lambda path: None)
        output = Output(out, overwrite=True)
        with pytest.raises(Killed):
            fill(output)
        os.close(output._lock)


@pytest.mark.parametrize("after", range(4))  # two old items are set aside, two new ones come
def test_a_run_that_was_cut_off_while_it_moved_its_results_is_completed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    out = tmp_path / "out"
    fill(Output(out), "old")
    cut_off(out, monkeypatch, after)
    assert (out / JOURNAL).is_file()
    (scratch,) = out.glob(f"{INSIDE}*")
    kept = {p.read_text() for p in scratch.rglob("*.json")} | {p.read_text() for p in out.glob("*.json")}
    assert kept == {"old", "new"}, "nothing is deleted before everything has come"
    output = Output(out)
    with pytest.raises(DeixisError, match=r"not empty; .*cut off while its results were moved here; done now"):
        output.check()
    assert tree(out) == WHOLE


def test_a_run_that_was_cut_off_before_is_noted_and_swept_by_the_next(tmp_path: Path) -> None:
    for out in (tmp_path / "there", tmp_path / "new"):
        if out.name == "there":
            out.mkdir()
        output = Output(out)
        output.__enter__()
        with output.item("masks.json") as place:
            place.write_text("{}")
        os.close(output._lock)
        again = fill(Output(out))
        assert again.notes == [
            f"{output.scratch}: left by a run that was cut off; whole in it: masks.json; deleted when this run has"
            " finished"
        ]
    assert tree(tmp_path) == sorted(["new", "there", *(f"{o}/{name}" for o in ("new", "there") for name in WHOLE)])


def test_a_world_that_was_cut_off_while_its_splits_were_moved_is_completed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "world"
    out.mkdir()
    cut_off(out, monkeypatch, 1)
    with pytest.raises(DeixisError, match=r"not empty; name a new one \(.*cut off while its results were moved"):
        write_mevis(out, 3, config=WorldConfig(size=(48, 64), frames=2))
    assert tree(out) == WHOLE


def test_a_run_that_was_cut_off_as_it_began_to_write_the_journal_is_no_results(tmp_path: Path) -> None:
    (tmp_path / f"{JOURNAL}.half").write_text('{"from')
    fill(Output(tmp_path))
    assert tree(tmp_path) == WHOLE


def test_what_a_run_left_beside_an_out_that_came_to_be_since_is_noted_and_swept(tmp_path: Path) -> None:
    output = Output(tmp_path / "out")
    output.__enter__()
    os.close(output._lock)
    (tmp_path / "out").mkdir()
    assert len(fill(Output(tmp_path / "out")).notes) == 1
    assert tree(tmp_path) == ["out", *(f"out/{name}" for name in WHOLE)]


@pytest.mark.parametrize("left", [[], ["lost+found"], [".deixis/run.json.half"], [".deixis"], [".Trash-0", "._x"]])
def test_predict_takes_what_a_disk_or_a_kill_at_its_start_left_in_out_for_nothing(
    tmp_path: Path, left: list[str]
) -> None:
    write_fixture("mevis", tmp_path / "mevis")
    out = tmp_path / "out"
    out.mkdir()
    for name in left:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("{") if name.endswith(".half") else (out / name).mkdir()
    words = ["predict", "mevis", str(tmp_path / "mevis"), "-o", str(out), "--model", "light_debug", "--device", "cpu"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert not list(out.rglob("*.half"))


def test_predict_does_not_take_answers_without_a_run_for_its_own(tmp_path: Path) -> None:
    write_fixture("mevis", tmp_path / "mevis")
    (tmp_path / "out" / ".deixis" / "video00").mkdir(parents=True)
    words = ["predict", "mevis", str(tmp_path / "mevis"), "-o", str(tmp_path / "out"), "--model", "light_debug"]
    assert "is not empty and not a run of" in CliRunner().invoke(app, words).stderr


def test_a_fixture_that_is_cut_off_leaves_nothing_and_a_disks_own_folder_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("deixis.benchmarks.mevis.write_fixture", lambda out: (out / "half").mkdir() or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_fixture("mevis", tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "lost+found").mkdir()
    write_fixture("mevis", tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lost+found", "train", "valid", "valid_u"]


def test_a_picture_that_was_cut_off_while_a_benchmark_was_built_is_not_taken_for_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "00000.jpg").write_text("whole")

    def no_links(*arguments: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    def cut_off(source: str, copy: Path) -> None:
        Path(copy).write_text("wh")
        raise Killed

    monkeypatch.setattr("os.link", no_links)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfile", cut_off)
        with pytest.raises(Killed):
            ref_davis17._link(source, target, "")
    assert ref_davis17._link(source, target, "") == ["00000"]
    assert (target / "00000.jpg").read_text() == "whole"


def test_what_a_living_run_makes_is_let_be(tmp_path: Path) -> None:
    first = Output(tmp_path)
    first.__enter__()
    second = fill(Output(tmp_path, overwrite=True))
    assert second.notes == []
    assert first.scratch.is_dir()
    first.__exit__(None, None, None)
    assert tree(tmp_path) == WHOLE


def test_a_journal_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_text("{")
    with pytest.raises(DeixisError, match=f"incomplete, and {JOURNAL} in it cannot be read"):
        Output(tmp_path, overwrite=True).check()


def test_a_journal_whose_items_are_gone_says_so(tmp_path: Path) -> None:
    scratch = f"{INSIDE}x"
    (tmp_path / JOURNAL).write_text(json.dumps({"from": scratch, "aside": f"{scratch}/aside", "items": ["masks.json"]}))
    (tmp_path / scratch).mkdir()
    output = Output(tmp_path)
    output.check()
    assert output.notes == [
        f"{tmp_path}: a run was cut off while its results were moved here; done now, except masks.json, which cannot be"
        " found any more"
    ]


@pytest.mark.parametrize(
    "journal",
    [
        {"from": "../mine", "aside": "../mine/aside", "items": ["thesis.txt"]},
        {"from": f"{INSIDE}x", "aside": "../mine/aside", "items": []},
        {"from": "../mine", "aside": f"{INSIDE}x/aside", "items": ["thesis.txt"]},
        {"from": f"{INSIDE}x", "aside": f"{INSIDE}x/aside", "items": ["../mine/thesis.txt"]},
    ],
)
def test_a_journal_that_names_what_is_not_a_runs_own_moves_and_deletes_nothing(
    tmp_path: Path, journal: dict[str, object]
) -> None:
    out, mine = tmp_path / "out", tmp_path / "mine"
    (out / f"{INSIDE}x").mkdir(parents=True)
    mine.mkdir()
    (mine / "thesis.txt").write_text("dear")
    (out / JOURNAL).write_text(json.dumps(journal))
    with pytest.raises(DeixisError, match="it names places that no run makes"):
        Output(out, overwrite=True).check()
    assert (mine / "thesis.txt").read_text() == "dear"


def test_what_another_run_had_made_but_not_locked_yet_is_not_deleted(tmp_path: Path) -> None:
    begun = tmp_path / f"{INSIDE}begun"  # as after mkdtemp, and before its lock
    begun.mkdir()
    output = Output(tmp_path)
    with output:
        handle = lock(begun)
        with output.item("masks.json") as place:
            place.write_text("{}")
    assert begun.is_dir()
    assert handle is not None
    os.close(handle)


@pytest.mark.slow
def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = f"from pathlib import Path; from deixis.locks import lock; lock(Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(SOURCE)})
    assert lock(tmp_path) is not None


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EIO, "Input/output error"), False),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
    ],
)
def test_a_disk_that_refuses_a_training_run_is_one_line_and_the_checkpoint_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kept: bool
) -> None:
    if kept:
        (tmp_path / "last.safetensors").touch()

    def train(*arguments: object, **named: object) -> None:
        raise error

    monkeypatch.setattr("deixis.training.loop.train", train)
    done = CliRunner().invoke(app, ["train", "soc_world", "-o", str(tmp_path)])
    assert done.exit_code == 2, done.exception
    assert done.stderr.startswith(f"deixis: cannot write to {tmp_path} (")
    assert ("go on from it with --resume" in done.stderr) == kept


def test_data_of_a_training_that_is_not_there_is_named_and_not_called_an_error_of_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "data" / "picture.jpg"

    def train(*arguments: object, **named: object) -> None:
        gone.read_bytes()

    monkeypatch.setattr("deixis.training.loop.train", train)
    done = CliRunner().invoke(app, ["train", "soc_world", "-o", str(tmp_path / "out")])
    assert done.exit_code == 2, done.exception
    assert done.stderr == (
        f"deixis: {gone}: No such file or directory; is it what --data should name? nothing was written\n"
    )


@pytest.mark.parametrize(
    ("recipe", "data", "said"),
    [
        ("light", ["pictures", "weights"], "mobile_sam.fp16.safetensors is missing; --data weights names the folder"),
        ("light_namer", ["features", "objects", "pictures", "weights"], "imagenet_names.json: No such file"),
    ],
)
def test_a_folder_of_training_data_that_is_empty_is_one_line_before_anything_is_trained(
    tmp_path: Path, recipe: str, data: list[str], said: str
) -> None:
    given = [f"--data={name}={tmp_path}" for name in data]
    done = CliRunner().invoke(app, ["train", recipe, *given, "-o", str(tmp_path / "out"), "--device", "cpu"])
    assert done.exit_code == 2, done.exception
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


# --- real mounts ------------------------------------------------------------------------------------------------------


# One process does everything, for to start another takes longer than the work.
IN_NAMESPACE = """
import json, os, subprocess, sys
from pathlib import Path
from typer.testing import CliRunner
from deixis.cli import app

frames, disk, root, bench = map(Path, sys.argv[1:])
def mount(*words):
    if subprocess.run(["mount", *map(str, words)]).returncode:
        sys.exit(77)
def run(out, *words):
    done = CliRunner().invoke(app, [
        "segment", str(frames), "red", "--model", "light_debug", "--device", "cpu",
        "--as", "rle,png", "-q", "-o", str(out), *words])
    return done.exit_code, done.stderr, sorted(p.name for p in Path(out).iterdir()) if Path(out).is_dir() else None
mount("-t", "tmpfs", "-o", "size=20m", "none", disk)
found = {"empty": run(disk)}
(disk / "keep").touch()
found["refused"] = run(disk)
found["overwrite"] = run(disk, "--overwrite")
mount("--bind", root, root)
mount("--bind", root / "out", root / "out")
mount("-o", "remount,ro,bind", root)
found["below"] = run(root / "out")
def other(*words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    return done.exit_code, done.stderr
for name in ("world", "predict", "film", "pack", "batch", "train"):
    (disk / name).mkdir()
    mount("-t", "tmpfs", "-o", "size=20m", "none", disk / name)
world, results = disk / "world", disk / "predict"
found["others"] = [
    other("world", world, "--films", 3, "--frames", 3, "--size", "48x64"),
    other("predict", "world", world, "-o", results, "--split", "valid", "--model", "light_debug", "--device", "cpu"),
    other("pack", "world", results, "-o", disk / "pack" / "sub.zip"),
    other("batch", frames.parent / "list.csv", "-o", disk / "batch", "--model", "light_debug", "--device", "cpu",
          "--as", "rle", "--workers", 1),
]
from deixis.training.recipes import RECIPES  # a recipe that takes no time
sys.path.insert(0, str(bench))
from deixis.systems import SYSTEMS
from kill import Toy, ToyConfig, toy
RECIPES["toy"], SYSTEMS["toy"] = toy, (Toy, ToyConfig)
found["others"] += [other("train", "toy", "-o", disk / "train", "--device", "cpu")]
found["lists"] = {name: sorted(p.name for p in (disk / name).iterdir()) for name in ("pack", "batch", "train")}
found["world"] = sorted(p.name for p in world.iterdir())
found["new"] = run(root / "new")
print(json.dumps(found))
"""


@pytest.mark.slow
def test_every_command_into_mounted_disks_and_segment_below_a_read_only_folder(tmp_path: Path) -> None:
    if shutil.which("unshare") is None or shutil.which("mount") is None:
        pytest.skip("needs unshare and mount (Linux)")
    frames = write_folder(tmp_path / "frames", moving(4))
    (tmp_path / "list.csv").write_text(f"film,sentences\n{frames},red\n")
    disk, root = tmp_path / "disk", tmp_path / "root"
    disk.mkdir()
    (root / "out").mkdir(parents=True)
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", IN_NAMESPACE, frames, disk, root, SOURCE.parent / "bench"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(SOURCE)}, timeout=300,
    )  # fmt: skip
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip(f"may not mount here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    files = ["contact_sheet.png", "masks", "masks.json"]
    with_keep = sorted([*files, "keep"])
    found = json.loads(done.stdout)
    assert found["empty"] == [0, "", files]
    assert found["refused"] == [
        2, f"deixis: {disk} exists and is not empty; give another folder, or --overwrite\n", with_keep,
    ]  # fmt: skip
    assert found["overwrite"] == [0, "", with_keep]
    assert found["below"] == [0, "", files]
    assert found["others"][:3] == [[0, ""]] * 3
    status, said = found["others"][3]  # batch says on what it computes, and no more
    assert (status, said.startswith("light_debug on cpu"), len(said.splitlines())) == (0, True, 1), said
    status, said = found["others"][4]
    assert (status, len(said.splitlines())) == (0, 10), said  # a line a step
    lists = found["lists"]
    assert lists["pack"] == ["sub.zip"]
    assert [name.partition("-")[0] for name in lists["batch"]] == ["frames", "results.jsonl"]
    assert lists["train"] == ["curves.png", "last.safetensors", "metrics.jsonl", "model.safetensors", "run.json"]
    assert found["world"] == ["train", "valid", "valid_u"]
    assert found["new"] == [2, f"deixis: cannot write to {root}: Read-only file system\n", None]
