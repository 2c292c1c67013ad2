"""Your own data, a folder of films, masks and a table: checked, predicted on, scored and trained on as a benchmark."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from deixis import weights
from deixis.benchmarks import folder, open_benchmark, write_fixture
from deixis.benchmarks.checking import check_benchmark
from deixis.benchmarks.fixtures import tiny_videos
from deixis.benchmarks.frames import film_index, read_frames
from deixis.benchmarks.pngs import write_binary, write_ids
from deixis.benchmarks.results import mask_path
from deixis.cli import app
from deixis.metrics.evaluate import score_benchmark, worst_frames
from deixis.training.labelled_frames import labelled_videos
from deixis.training.recipes import find_recipe
from deixis.training.recipes import folder as folder_module
from deixis.training.recipes.folder import _absent_sentence, _as_benchmark, soc_windows
from deixis.types import DeixisError

HEAD = "film,sentence,objects,split"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEIXIS_CACHE", str(tmp_path / "cache"))
    labelled_videos.cache_clear()
    soc_windows.cache_clear()
    _as_benchmark.cache_clear()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_fixture("folder", tmp_path / "mine")
    return tmp_path / "mine"


def table(root: Path, *lines: str, head: str = HEAD, encoding: str = "utf-8") -> None:
    (root / "sentences.csv").write_text("\n".join((head, *lines)) + "\n", encoding=encoding)


def problems(root: Path, split: str = "train") -> list[str]:
    try:
        return [str(p) for p in open_benchmark("folder", root, split, skip_bad=True).problems]
    except DeixisError as error:  # nothing good is left
        return [str(error)]


def perfect(root: Path, split: str, out: Path) -> Any:
    """Results that equal the truth where it is known, and are full elsewhere."""
    benchmark = open_benchmark("folder", root, split)
    assert benchmark.truth is not None
    for sample in benchmark.samples:
        for index, name in enumerate(sample.video.names):
            mask = np.ones((48, 32), bool)
            if sample.scored is None or index in sample.scored:
                mask = benchmark.truth(sample.video, index).union(sample.objects or ())
            write_binary(out / mask_path(benchmark, sample, name), mask)
    return benchmark


# --- reading and scoring ---------------------------------------------------------------------------------------------


def test_the_tiny_copy_has_no_problem_and_its_counts_are_given(root: Path) -> None:
    findings = check_benchmark("folder", root)
    assert findings.problems == 0
    assert findings.lines == (
        "valid: truth there", "  films 1", "  sentences 4", "  labelled frames 8",
        "train: truth there", "  films 2", "  sentences 8", "  labelled frames 12",
    )  # fmt: skip


def test_truth_is_the_boxes_that_were_drawn_at_the_frame_that_was_drawn(root: Path) -> None:
    drawn = {video.id: video for video in tiny_videos(frames=8)}
    for split in ("train", "valid"):
        benchmark = open_benchmark("folder", root, split)
        assert benchmark.truth is not None
        for sample in benchmark.samples:
            for index in range(8) if sample.scored is None else sample.scored:
                wanted = np.isin(drawn[sample.video.id].ids[index], [int(key) for key in sample.objects or ()])
                assert np.array_equal(benchmark.truth(sample.video, index).union(sample.objects or ()), wanted)
                frame = read_frames(sample.video, [film_index(sample, index)])[0]
                assert np.abs(frame.astype(int) - drawn[sample.video.id].frames[index]).mean() < 12


def test_answers_that_equal_the_truth_score_one_and_unlabelled_frames_do_not_count(root: Path, tmp_path: Path) -> None:
    for split in ("train", "valid"):
        perfect(root, split, tmp_path / split)
        scores = score_benchmark("folder", root, tmp_path / split, split)
        for key in ("J&F", "interval IoU", "J&F with target"):
            assert scores.summary[key] == 1.0
        assert sorted(scores.groups) == ["motion", "none", "place", "several"]
    rows = {(row.video, row.id): row for row in scores.rows}
    assert rows["video02", "0"].values["frames"] == 8


def test_the_worst_frame_of_a_film_file_is_the_labelled_one_that_went_wrong(root: Path, tmp_path: Path) -> None:
    for path in sorted((root / "masks/video00").iterdir())[::2]:
        path.unlink()
    benchmark = perfect(root, "train", tmp_path / "out")
    sample = next(s for s in benchmark.samples if s.video.id == "video00")
    assert sample.scored == (1, 3, 5, 7)
    write_binary(tmp_path / "out" / mask_path(benchmark, sample, "00005"), np.zeros((48, 32), bool))
    scores = score_benchmark("folder", root, tmp_path / "out", "train")
    row = next(r for r in scores.rows if (r.video, r.id) == ("video00", sample.id))
    assert row.worst == 5
    assert row.values["J"] == 0.75
    frame, shown, truth = worst_frames(benchmark, tmp_path / "out", [row])["video00", sample.id]
    assert not shown.any()
    assert frame[truth][:, 0].mean() > frame[truth][:, 1].mean() + 60, "the red box lies under the mask"


def test_the_commands_take_a_folder_like_any_benchmark(root: Path, tmp_path: Path) -> None:
    def run(*words: object) -> str:
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == 0, done.output
        return done.output

    assert "labelled frames 12" in run("data", "check", "folder", root)
    out = tmp_path / "out"
    assert "8 expressions of folder train" in run(
        "predict", "folder", root, "-o", out, "--split", "train", "--model", "light_debug", "--device", "cpu"
    )
    run("score", "folder", root, out, "--split", "train")
    assert len(json.loads((out / "scores.json").read_text())["rows"]) == 8
    assert "complete for folder train" in run("pack", "folder", out, "-o", tmp_path / "out.zip")


# --- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("video00,,1,train", "line 2: an expression must be text with words"),
        (f"video00,{'word ' * 300},1,train", "line 2: an expression may hold 1000 characters"),
        (",the red box,1,train", "line 2: no film"),
        ("../secret,the red box,1,train", "line 2: '../secret' is no name of a video"),
        ("video00,the red box,,train", "line 2: objects must be numbers as in the masks"),
        ("video00,the red box,one,train", "line 2: objects must be numbers as in the masks"),
        ("video00,the red box,255,train", "line 2: objects must be numbers as in the masks"),
        ("video00,the red box,1,training", "line 2: the split must be test, train, valid, got 'training'"),
        ("video00,the red box, that one,1,train", "line 2: 5 cells, the head line has 4; a sentence with commas"),
        ("video00,the red box,1", "line 2: 3 cells, the head line has 4"),
        ("video09,the red box,1,train", "films/video09: no film and no folder of frames of this name"),
        ("video00,the red box,7,train", "line 2: no mask of video00 shows object 7; they hold 1, 2"),
        ("video02,the red box,1,train", "line 3: video02 is valid here and train in line 2; a film has one split"),
    ],
)
def test_a_bad_line_is_named_with_what_to_do(line: str, said: str, root: Path) -> None:
    table(root, line, "video02,the green box,2,valid", "video01,the green box,2,train")
    assert any(said in problem for problem in problems(root)), problems(root)
    benchmark = open_benchmark("folder", root, "train", skip_bad=True)
    assert "video01" in {sample.video.id for sample in benchmark.samples}
    with pytest.raises(DeixisError, match="skip-bad"):
        open_benchmark("folder", root, "train")


def test_one_sentence_with_two_answers_is_a_contradiction(root: Path) -> None:
    table(root, "video00,the box,1,train", "video00,The  box,2,train")
    assert "line 3: the sentence stands in line 2 too, with other objects" in problems(root)[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("film,sentence\nvideo00,the box\n", "the first line lacks objects; expected film,sentence,objects"),
        ("film,sentence,objects,film\n", "a column stands twice"),
        ('film,sentence,objects\nvideo00,"the box,1\n', "not a line of a CSV file"),
    ],
)
def test_a_file_that_is_no_table_is_refused(text: str, said: str, root: Path) -> None:
    (root / "sentences.csv").write_text(text)
    with pytest.raises(DeixisError, match=said):
        open_benchmark("folder", root)


def test_a_table_that_a_spreadsheet_saved_is_read(root: Path) -> None:
    rows = ["video00.mp4;Der rote Kasten, größer;1;train;x", "video02;the green box;2 + 1;valid;y", ";;;;"]
    (root / "sentences.csv").write_bytes("\r\n".join(("Film;Sentence;Objects;split;remark", *rows)).encode("utf-8-sig"))
    benchmark = open_benchmark("folder", root, "train")
    assert [s.text for s in benchmark.samples] == ["der rote kasten, größer"]
    assert benchmark.notes == ("columns not read: remark",)
    assert open_benchmark("folder", root, "valid").samples[0].objects == ("2", "1")
    (root / "sentences.csv").write_bytes("film,sentence,objects\nvideo00,größer,1".encode("latin-1"))
    with pytest.raises(DeixisError, match="save the table as 'CSV UTF-8'"):
        open_benchmark("folder", root)


def test_without_a_column_split_a_fifth_of_the_films_is_held_out_whatever_else_is_added() -> None:
    films = {f"film{i}" for i in range(200)}
    held = folder.held_out_films(films)
    assert 25 <= len(held) <= 55
    assert held == folder.held_out_films(films | {"another"}) - {"another"}
    assert len(folder.held_out_films({"a", "b"})) == 1
    assert folder.held_out_films({"a"}) == frozenset()


# --- films and masks -------------------------------------------------------------------------------------------------


def remove_masks(root: Path) -> None:
    for path in (root / "masks/video00").iterdir():
        path.unlink()
    (root / "masks/video00").rmdir()


def relink(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def mask_called(name: str) -> Callable[[Path], None]:
    """Adds a mask of that name to video00."""
    return lambda root: write_ids(root / "masks/video00" / name, np.ones((48, 32), np.uint8))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda root: (root / "films/video00.mp4").unlink(), "films/video00: no film and no folder of frames"),
        (lambda root: (root / "films/video00.mp4").write_bytes(b"no film"), "not a film that can be decoded"),
        (lambda root: relink(root / "masks/video00/00003.png"), "00003.png: cannot be read (No such file"),
        (lambda root: relink(root / "films/video00.mp4"), "video00.mp4: cannot be read (No such file"),
        (lambda root: (root / "films/video00.mov").write_bytes(b"x"), "has the same name; rename one of them"),
        (remove_masks, "masks/video00: the folder of the film's masks is missing"),
        (lambda root: Image.new("RGB", (32, 48)).save(root / "masks/video00/00003.png"), "a mask has one channel"),
        (
            lambda root: write_ids(root / "masks/video00/00003.png", np.ones((24, 16), np.uint8)),
            "00003.png: the mask is 24x16, the frame 48x32",
        ),
        (lambda root: (root / "masks/video00/00003.png").write_bytes(b"\x89PNG"), "00003.png: not a readable PNG"),
        (mask_called("99999.png"), "99999.png: video00 has no such frame; its frames are 00000 to 00007, counted"),
        (mask_called("3.png"), "is a mask of the same frame"),
    ],
)
def test_what_is_wrong_on_disk_is_named(make: Callable[[Path], Any], said: str, root: Path) -> None:
    assert check_benchmark("folder", root).problems == 0  # and this is what the cache keeps
    make(root)
    findings = check_benchmark("folder", root)
    assert findings.problems >= 1
    assert any(said in line for line in findings.lines), findings.lines
    done = CliRunner().invoke(app, ["train", "soc_folder", "-o", str(root / "out"), "--data", f"folder={root}"])
    assert (done.exit_code, done.stderr.count("\n"), (root / "out").exists()) == (2, 1, False)


def test_a_missing_folder_says_how_it_is_laid_out(tmp_path: Path) -> None:
    with pytest.raises(DeixisError, match=r"is missing; docs/train_on_your_data\.md"):
        open_benchmark("folder", tmp_path / "nothing")
    with pytest.raises(DeixisError, match=r"is missing; docs/train_on_your_data\.md"):
        check_benchmark("folder", tmp_path / "nothing")


def test_black_and_white_masks_show_object_1_and_255_is_void_beside_numbers() -> None:
    mask = np.zeros((4, 4), np.uint8)
    mask[0] = 255
    assert list(folder.frame_truth(mask).masks) == ["1"]
    assert folder.frame_truth(mask).void is None
    mask[1] = 3
    truth = folder.frame_truth(mask)
    assert list(truth.masks) == ["3"]
    assert truth.void is not None
    assert truth.void[0].all()


def test_masks_of_film_files_may_be_numbered_without_zeros(root: Path) -> None:
    for path in (root / "masks/video00").iterdir():
        path.rename(path.with_name(f"{int(path.stem)}.png"))
    assert check_benchmark("folder", root).problems == 0


# --- training --------------------------------------------------------------------------------------------------------

TINY = {"data.short_sides": "64,64,64", "data.frames": "2,2,2", "data.pool": "6", "train.precision": "fp32",
        "train.steps": "2", "train.batch": "2", "train.workers": "0", "train.validate_every": "2"}  # fmt: skip


@pytest.fixture
def start(tmp_path: Path) -> Path:
    path = tmp_path / "debug.safetensors"
    weights.save(weights.load("light_debug"), path)
    return path


@pytest.mark.slow
def test_light_is_trained_on_a_folder_and_its_model_loads(root: Path, start: Path, tmp_path: Path) -> None:
    words = ["train", "light_folder", "-o", tmp_path / "run", "--data", f"folder={root}", "--data", f"start={start}"]
    words += [word for pair in TINY.items() for word in ("--set", "=".join(pair))]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    scores = next(line["scores"] for line in lines if "scores" in line)
    assert {"overlap", "right", "absent", "right_motion"} <= scores.keys()
    before, after = weights.load(start).state_dict(), weights.load(tmp_path / "run/model.safetensors").state_dict()
    trained = [key for key in before if key.startswith(("scorer.", "kernels."))]
    moved = {key for key in trained if not torch.equal(before[key], after[key])}
    assert moved
    assert (tmp_path / "run/model.safetensors").stat().st_size < start.stat().st_size


def test_lights_clips_are_of_one_shape_a_batch_and_the_same_for_their_index(root: Path, start: Path) -> None:
    run = find_recipe("light_folder")({"folder": root, "start": start}, overrides=TINY)
    films = [run.samples(index) for index in range(12)]
    for first in range(0, 12, 2):
        batch = run.collate(films[first : first + 2])
        assert batch.frames.shape[1] == 2
        assert all(side % 32 == 0 for side in batch.frames.shape[-2:])
    assert all(np.array_equal(film.frames, run.samples(i).frames) for i, film in enumerate(films))
    assert {film.name for film in films} == {"video00", "video01"}, "held-out films are not trained on"
    for film in films:
        assert film.sentences
        assert film.ignore is not None
        assert not (film.ignore & film.masks.any(1)).any(), "what is labelled is known"
        for sentence in film.sentences:
            assert all(film.masks[:, k].any() for k in sentence.objects)
            assert bool(sentence.objects) == (sentence.kind != "none")


def test_a_mirrored_clip_says_left_for_right(root: Path, start: Path) -> None:
    for chance, side in (("0", "right"), ("1", "left")):
        overrides = {**TINY, "data.augment.flip": chance, "data.borrowed": "0"}
        run = find_recipe("light_folder")({"folder": root, "start": start}, overrides=overrides)
        texts = [s.text for i in range(8) for s in run.samples(i).sentences if "green" in s.text]
        assert texts
        assert all(f"on the {side}" in text for text in texts)


def test_a_borrowed_sentence_names_nothing_that_is_said_of_the_film(root: Path) -> None:
    table(root, "video00,the red box,1,train", "video01,the green box,2,train", "video01,a small fish,1,train")
    source = labelled_videos(str(root), "train")
    own = {video.id: samples for video, samples in source.films}["video00"]
    borrowed = {_absent_sentence(source, own, np.random.default_rng(seed)) for seed in range(20)}
    assert borrowed - {None} == {"a small fish"}


def test_frames_of_a_film_file_are_unpacked_once(root: Path, tmp_path: Path) -> None:
    first = labelled_videos(str(root), "train").films[0][0]
    assert isinstance(first.frames, tuple)
    times = [path.stat().st_mtime_ns for path in first.frames]
    labelled_videos.cache_clear()
    again = labelled_videos(str(root), "train").films[0][0]
    assert again.frames == first.frames
    assert [path.stat().st_mtime_ns for path in first.frames] == times
    assert not list((tmp_path / "cache").glob("*.half"))


def test_soc_learns_every_named_object_and_no_sentence_of_nothing(root: Path) -> None:
    overrides = {"train.steps": "2", "train.batch": "2", "train.workers": "0", "train.validate_every": "2"}
    run = find_recipe("soc_folder")({"folder": root}, overrides=overrides)
    table = soc_windows(str(root), 6, False)
    assert {sample.text for sample, _ in table} >= {"the red box that walks down", "the two boxes, both of them"}
    assert not any("dog" in sample.text for sample, _ in table)
    batch = run.collate([run.samples(i) for i in range(2)])
    assert batch.targets is not None
    assert all(bool(t.visible[:, t.referred].any(0).all()) for t in batch.targets)
    model = run.system().train()
    total = torch.stack(list(run.losses(model, batch).values())).sum()
    total.backward()
    assert torch.isfinite(total)
    assert run.validate is not None
    scores = run.validate(model.eval())
    assert "absent" not in scores


def test_soc_goes_on_from_a_checkpoint_of_its_own_kind(root: Path, tmp_path: Path, start: Path) -> None:
    path = tmp_path / "soc.safetensors"
    weights.save(weights.load("soc_plus_plus_debug"), path)
    run = find_recipe("soc_folder")({"folder": root, "start": path}, overrides={"train.steps": "1"})
    assert type(run.config).__name__ == "SocPlusPlusConfig"
    system = run.system()
    assert run.groups(system)
    assert all(torch.equal(a, b) for a, b in zip(weights.load(path).parameters(), system.parameters(), strict=True))
    with pytest.raises(DeixisError, match="a checkpoint of Light, expected one of Soc or SocPlusPlus"):
        find_recipe("soc_folder")({"folder": root, "start": start}, overrides={})
    with pytest.raises(DeixisError, match=r"does not fit this model, at .* tensors"):
        find_recipe("soc_folder")({"folder": root, "start": path}, overrides={"model.hidden": "48"}).system()


@pytest.mark.parametrize("name", ["light_folder", "soc_folder"])
def test_a_recipe_says_that_it_needs_the_folder(name: str) -> None:
    with pytest.raises(DeixisError, match=rf"{name} needs --data folder=FOLDER; docs/train_on_your_data\.md"):
        find_recipe(name)({}, overrides={})


def test_without_held_out_films_nothing_is_measured(root: Path, start: Path) -> None:
    table(root, "video00,the red box,1,train", "video01,the green box,2,train")
    assert find_recipe("light_folder")({"folder": root, "start": start}, overrides=TINY).validate is None


def test_presence_is_fitted_only_where_enough_was_held_out(
    root: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = find_recipe("light_folder")({"folder": root, "start": start}, overrides=TINY)
    system: Any = run.system()
    before = system.config
    run.export(system, tmp_path / "a.safetensors")
    assert system.config == before
    monkeypatch.setattr(folder_module, "LEAST_TO_FIT", 1)
    run.export(system, tmp_path / "b.safetensors")
    assert system.config.presence_temperature != before.presence_temperature
