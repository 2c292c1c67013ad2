"""predict, score, pack, data: from a benchmark to a submission on the command line, and every refusal by name."""

import csv
import errno
import json
import os
import shutil
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers.slow_metric import plain_contour, plain_region
from PIL import Image
from typer.testing import CliRunner

from deixis import predict as predicting
from deixis.benchmarks import open_benchmark, ref_youtube_vos, write_fixture
from deixis.benchmarks.pngs import read_ids, write_binary, write_ids
from deixis.benchmarks.results import davis_path, mask_path
from deixis.cli import app
from deixis.metrics.evaluate import score_benchmark
from deixis.metrics.folders import score_masks
from deixis.metrics.parallel import mapper
from deixis.types import DeixisError

SPLITS = {"ref-youtube-vos": "holdout"}
BENCHMARKS = ["mevis", "ref-youtube-vos", "ref-davis17", "a2d-sentences", "jhmdb-sentences", "refcoco", "visor"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEIXIS_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


def run(*words):
    """(exit status, stdout, stderr) of a command; an error that is not the user's is raised."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def refused(*words):
    """The one line in which a command refuses."""
    status, _, line = run(*words)
    assert status == 2
    assert line.count("\n") == 1
    assert line.startswith("deixis: ")
    return line


@pytest.fixture
def made(tmp_path):
    def make(name):
        write_fixture(name, tmp_path / name)
        return tmp_path / name

    return make


def perfect(name, root, out, split=None):
    """Results that equal the truth."""
    benchmark = open_benchmark(name, root, split)
    answers = []
    for sample in benchmark.samples:
        for index, frame in enumerate(sample.video.names):
            if benchmark.protocol == "expressions":
                truth = benchmark.truth(sample.video, index)
                write_binary(out / mask_path(benchmark, sample, frame), truth.union(sample.objects))
            elif benchmark.protocol == "davis":
                truth = benchmark.truth(sample.video, index)
                ids = sum(int(k) * m.astype(np.uint8) for k, m in truth.masks.items())
                write_ids(out / davis_path(int(sample.id) % 4, sample.video, index), ids.astype(np.uint8))
        if benchmark.protocol == "answers":
            mask = benchmark.truth(sample.video, sample.scored[0]).union(sample.objects)
            rle = predicting._plain(mask)
            answers.append({"image_id": sample.id, "category_id": 1, "segmentation": rle, "score": 0.9})
    if answers:
        out.mkdir()
        (out / "predictions.json").write_text(json.dumps(answers))
    return out


# --- the whole way ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_goes_through_check_predict_score_and_pack(name, tmp_path):
    root, out, archive = tmp_path / "root", tmp_path / "out", tmp_path / "sub.zip"
    split = ["--split", SPLITS[name]] if name in SPLITS else []
    assert run("data", "fixture", name, root)[0] == 0
    assert run("data", "check", name, root)[0] == 0
    status, shown, _ = run("predict", name, root, "-o", out, "--model", "light_debug", "--device", "cpu", *split)
    assert status == 0
    assert "are answered" in shown
    status, shown, _ = run("score", name, root, out, *split)
    assert status == 0
    scores = json.loads((out / "scores.json").read_text())
    assert scores["benchmark"] == name
    assert scores["protocol"].endswith("version 1")
    assert len(scores["rows"]) == len(open_benchmark(name, root, SPLITS.get(name)).samples)
    assert all(0 <= scores["summary"][k] <= 1 for k in ("J&F", "mIoU") if k in scores["summary"])
    with open(out / "scores.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(scores["rows"])
    assert Image.open(out / "scores.png").size[0] == 1000
    assert run("pack", name, out, "-o", archive)[0] == 0
    zipped = zipfile.ZipFile(archive).namelist()
    assert not [member for member in zipped if "deixis" in member or "scores" in member]
    top = {"ref-youtube-vos": "Annotations/", "visor": "Annotations/", "mevis": "video0", "ref-davis17": "anno_"}
    assert all(member.startswith(top.get(name, "predictions.json")) for member in zipped)
    repeated = json.loads((out / "scores.json").read_text())
    assert run("score", name, root, archive, "-o", tmp_path / "again", *split)[0] == 0
    again = json.loads((tmp_path / "again/scores.json").read_text())
    # The zip carries no presence; everything that masks state is the same.
    assert {k: v for k, v in again["summary"].items() if v != repeated["summary"].get(k)} == {}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_results_that_equal_the_truth_score_one(name, made, tmp_path):
    root = made(name)
    scores = score_benchmark(name, root, perfect(name, root, tmp_path / "out", SPLITS.get(name)), SPLITS.get(name))
    for key in ("J&F", "J", "F", "strict J&F", "mAP", "strict mAP", "mIoU", "oIoU", "P@0.9", "N-acc", "T-acc", "Final"):
        assert scores.summary.get(key, 1.0) == pytest.approx(1.0), key
    assert scores.summary.get("identity swaps", 0.0) == 0.0
    assert scores.summary.get("stability", 1.0) == 1.0


# --- predict ---------------------------------------------------------------------------------------------------------


def test_a_stopped_run_is_taken_up_where_it_was(made, tmp_path, monkeypatch):
    root, out = made("mevis"), tmp_path / "out"
    words = ("predict", "mevis", root, "-o", out, "--model", "light_debug", "--device", "cpu")
    follow_film = predicting.follow_film
    films = []

    def stopping(setup, film, *rest, **options):
        films.append(film)
        if len(films) == 2:
            raise KeyboardInterrupt
        return follow_film(setup, film, *rest, **options)

    monkeypatch.setattr(predicting, "follow_film", stopping)
    assert run(*words)[0] == 130
    assert "is incomplete" in refused("score", "mevis", root, out)
    finished = {path: path.stat().st_mtime_ns for path in out.rglob("video00/*/*.png")}
    assert len(finished) == 16
    lost = out / "video00/2/00001.png"
    lost.unlink()  # as if the run had been killed while it wrote this expression
    monkeypatch.setattr(predicting, "follow_film", follow_film)
    assert run(*words)[0] == 0
    assert lost.is_file()
    again = {path for path, time in finished.items() if path.stat().st_mtime_ns != time}
    assert again == {path for path in finished if path.parent.name == "2"}
    monkeypatch.setattr(predicting, "follow_film", lambda *_, **__: pytest.fail("nothing was left to do"))
    assert run(*words)[0] == 0
    assert not list(out.rglob("*.half"))


def test_a_folder_of_other_results_is_not_mixed_with(made, tmp_path):
    root, out = made("refcoco"), tmp_path / "out"
    words = ("predict", "refcoco", root, "-o", out, "--model", "light_debug", "--device", "cpu")
    assert run(*words)[0] == 0
    assert 'holds results of another run (split: "refcoco_val", now "refcoco_testA")' in refused(
        *words, "--split", "refcoco_testA"
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("dear")
    assert "name a new folder" in refused("predict", "refcoco", root, "-o", tmp_path / "mine", "--model", "light_debug")


def test_only_the_listed_frames_are_answered(made, tmp_path):
    root, out = made("mevis"), tmp_path / "out"
    folder = root / "valid_u/JPEGImages/video00"
    shutil.copy(folder / "00001.jpg", folder / "00001b.jpg")
    assert run("predict", "mevis", root, "-o", out, "--model", "light_debug", "--device", "cpu")[0] == 0
    assert sorted(path.stem for path in (out / "video00/0").iterdir()) == ["00000", "00001", "00002", "00003"]


def test_a_frame_that_cannot_be_read_stops_the_run_by_name(made, tmp_path):
    root = made("mevis")
    file = root / "valid_u/JPEGImages/video00/00001.jpg"
    file.write_bytes(file.read_bytes()[:200])
    line = refused("predict", "mevis", root, "-o", tmp_path / "out", "--model", "light_debug", "--device", "cpu")
    assert "video00: 3 frames could be read, 4 are listed (00001.jpg is not a picture that decodes" in line


@pytest.mark.parametrize("name", ["mevis", "ref-davis17"])
def test_a_frame_of_another_size_stops_the_run_by_name_before_anything_of_its_video_counts_as_finished(
    made, tmp_path, name
):
    root, out = made(name), tmp_path / "out"
    video = open_benchmark(name, root).samples[0].video
    cv2.imwrite(str(video.frames[2]), np.zeros((20, 30, 3), np.uint8))
    words = ("predict", name, root, "-o", out, "--model", "light_debug", "--device", "cpu")
    for _ in range(2):  # a second run does not take the first one's for finished
        assert f"video {video.id}: frames change size" in refused(*words)
    assert not list(out.rglob("*.png"))
    assert [path.name for path in out.rglob("*.json")] == ["run.json"]


def test_frames_of_different_sizes_around_a_labelled_one_are_refused_by_name(made, tmp_path):
    root = made("jhmdb-sentences")
    file = open_benchmark("jhmdb-sentences", root).samples[0].video.frames[1]
    cv2.imwrite(str(file), np.zeros((20, 30, 3), np.uint8))
    words = ("predict", "jhmdb-sentences", root, "-o", tmp_path / "out", "--model", "light_debug", "--device", "cpu")
    line = refused(*words)
    assert "the frames of a video must have one size" in line
    assert file.name in line


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_scores_is_one_line():
    with pytest.raises(DeixisError, match="one of 2 processes was killed; is there memory"), mapper(2) as over:
        list(over(os._exit, [1]))


@pytest.mark.parametrize("name", ["scores.csv", "scores.png"])
def test_scores_that_cannot_be_written_are_one_line(made, tmp_path, name):
    root, out = made("jhmdb-sentences"), tmp_path / "out"
    perfect("jhmdb-sentences", root, out)
    (out / name).mkdir()
    assert f"{out / name}: cannot be written (Is a directory)" in refused("score", "jhmdb-sentences", root, out)


def test_an_error_without_a_number_still_says_what_it_is(made, tmp_path, monkeypatch):
    def follow_film(*_, **__):
        raise OSError("the decoder gave up")

    monkeypatch.setattr(predicting, "follow_film", follow_film)
    line = refused("predict", "mevis", made("mevis"), "-o", tmp_path / "out", "--model", "light_debug")
    assert "the decoder gave up; what was finished is kept" in line


# --- protocols -------------------------------------------------------------------------------------------------------


def test_legacy_forgives_an_identity_swap_and_strict_does_not(made, tmp_path):
    root = made("ref-davis17")
    out = perfect("ref-davis17", root, tmp_path / "out")
    for file in out.glob("anno_2/*/*.png"):
        ids = read_ids(file, file)
        write_ids(file, np.array([0, 2, 1], np.uint8)[ids])  # annotator 2's answers, each given to the other object
    scores = score_benchmark("ref-davis17", root, out)
    assert scores.summary["J&F"] == pytest.approx(1.0)
    assert scores.summary["strict J&F"] < 0.8
    assert scores.groups["annotator 2"]["strict J&F"] < 0.2
    assert scores.groups["annotator 1"]["strict J&F"] == pytest.approx(1.0)
    assert scores.groups["annotator 2"]["answers given to another object"] == 1.0
    assert any(f"{100 * scores.summary['legacy - strict']:.2f} points" in remark for remark in scores.remarks)


def test_void_pixels_of_davis_count_for_nobody(made, tmp_path):
    root = made("ref-davis17")
    out = perfect("ref-davis17", root, tmp_path / "out")
    for file in out.glob("anno_*/*/*.png"):
        ids = read_ids(file, file).copy()
        ids[0, :3] = 1  # exactly where the truth is void
        write_ids(file, ids)
    assert score_benchmark("ref-davis17", root, out).summary["J"] == pytest.approx(1.0)


def test_extra_proposals_are_allowed_up_to_twenty(made, tmp_path):
    root = made("ref-davis17")
    out = perfect("ref-davis17", root, tmp_path / "out")
    file = out / "anno_0/video00/00001.png"
    ids = read_ids(file, file).copy()
    ids[47, 31] = 7
    write_ids(file, ids)
    assert score_benchmark("ref-davis17", root, out).summary["J&F"] == pytest.approx(1.0)
    ids[47, 31] = 21
    write_ids(file, ids)
    assert "anno_0/video00/00001.png: object number 21; 20 is the most" in refused("score", "ref-davis17", root, out)


def test_expressions_weigh_equally_and_frames_without_the_object_count(made, tmp_path):
    root = made("mevis")
    out = perfect("mevis", root, tmp_path / "out")
    # video02's box 2 is away in its last frame: one stray pixel there costs a quarter of that expression.
    file = out / "video02/1/00003.png"
    mask = np.zeros((48, 32), bool)
    mask[5, 5] = True
    write_binary(file, mask)
    scores = score_benchmark("mevis", root, out)
    assert scores.summary["J&F"] == pytest.approx(1 - 0.25 / 12)
    row = next(row for row in scores.rows if (row.video, row.id) == ("video02", "1"))
    assert row.values["interval IoU"] == 0.75
    assert row.worst == 3


def test_no_target_expressions_are_judged_by_whether_anything_is_shown(made, tmp_path):
    root = made("mevis")
    out = perfect("mevis", root, tmp_path / "out")
    for index in range(4):
        mask = np.zeros((48, 32), bool)
        mask[:3, :3] = True
        write_binary(out / f"video00/3/{index:05d}.png", mask)
        write_binary(out / f"video01/0/{index:05d}.png", np.zeros((48, 32), bool))
    summary = score_benchmark("mevis", root, out).summary
    assert summary["N-acc"] == pytest.approx(2 / 3)
    assert summary["T-acc"] == pytest.approx(8 / 9)
    assert summary["J&F"] == pytest.approx(10 / 12)
    assert summary["J&F with target"] == pytest.approx(8 / 9)
    assert summary["Final"] == pytest.approx(np.mean([10 / 12, 2 / 3, 8 / 9]))
    # Nine pixels are forgiven when asked; then the empty answer and the tiny one are the same to N-acc.
    assert score_benchmark("mevis", root, out, least_pixels=9).summary["N-acc"] == 1.0


def test_presence_is_judged_where_the_results_carry_it(made, tmp_path):
    root = made("mevis")
    out = perfect("mevis", root, tmp_path / "out")
    for sample in open_benchmark("mevis", root).samples:
        marker = out / ".deixis" / sample.video.id / f"{sample.id}.json"
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text(json.dumps({"presence": 0.9 if sample.objects else 0.1, "scores": []}))
    summary = score_benchmark("mevis", root, out).summary
    assert summary["presence ECE"] == pytest.approx(0.1)
    assert summary["risk-coverage area"] == 0.0
    marker.write_text('{"presence": NaN, "scores": []}')
    assert "NaN is no number" in refused("score", "mevis", root, out)
    marker.write_text('{"presence": 7, "scores": []}')
    assert "must be numbers in 0..1" in refused("score", "mevis", root, out)


def test_identity_swaps_are_counted_against_all_labelled_objects(made, tmp_path):
    root = made("mevis")
    out = perfect("mevis", root, tmp_path / "out")
    for frame in ("00001", "00002"):
        shutil.copy(out / f"video00/1/{frame}.png", out / f"video00/0/{frame}.png")
    row = next(row for row in score_benchmark("mevis", root, out).rows if (row.video, row.id) == ("video00", "0"))
    assert row.values["identity swaps"] == 2
    assert row.values["J"] == 0.5


def test_map_counts_all_answers_and_strict_map_the_one_a_user_sees(made, tmp_path):
    root = made("refcoco")
    out = perfect("refcoco", root, tmp_path / "out")
    answers = json.loads((out / "predictions.json").read_text())
    nothing = predicting._plain(np.zeros((48, 32), bool))
    answers += [{**answer, "segmentation": nothing, "score": 0.95} for answer in answers[:3]]
    (out / "predictions.json").write_text(json.dumps(answers))
    summary = score_benchmark("refcoco", root, out).summary
    assert summary["P@0.5"] == 0.5
    assert summary["mIoU"] == pytest.approx(0.5)
    assert summary["mAP"] > summary["strict mAP"] > 0


def test_groups_are_summed_apart(made, tmp_path):
    root = made("visor")
    out = perfect("visor", root, tmp_path / "out")
    for file in out.glob("Annotations/*/0/*.png"):  # expression 0 is the left hand
        write_binary(file, np.zeros((48, 32), bool))
    scores = score_benchmark("visor", root, out)
    assert scores.groups["hands"]["J"] == 0.0
    assert scores.groups["objects"]["J"] == 1.0
    assert scores.groups["unseen kitchens"]["J"] == 0.5


@pytest.mark.slow
def test_several_processes_find_what_one_finds(made, tmp_path):
    root = made("mevis")
    out = perfect("mevis", root, tmp_path / "out")
    write_binary(out / "video01/0/00002.png", np.eye(48, 32, dtype=bool))
    alone = score_benchmark("mevis", root, out)
    shared = score_benchmark("mevis", root, out, workers=2)
    assert shared == alone
    with pytest.raises(DeixisError, match="1 or more"):
        score_benchmark("mevis", root, out, workers=0)


def test_an_error_in_another_process_is_the_same_line(made, tmp_path):
    root = made("mevis")
    out = perfect("mevis", root, tmp_path / "out")
    (out / "video01/0/00002.png").write_bytes(b"no png")
    assert "video01/0/00002.png: not a readable PNG" in refused("score", "mevis", root, out, "--workers", 2)


def test_truth_that_is_not_public_is_said_to_be(made, tmp_path):
    root = made("mevis")
    (tmp_path / "out").mkdir()
    assert "the truth of mevis valid is not public" in refused(
        "score", "mevis", root, tmp_path / "out", "--split", "valid"
    )


# --- refusals --------------------------------------------------------------------------------------------------------


def rgb(file):
    Image.open(file).convert("RGB").save(file)


def truncated(file):
    file.write_bytes(file.read_bytes()[:40])


def resized(file):
    write_binary(file, np.zeros((24, 16), bool))


def jpeg(file):
    Image.fromarray(np.zeros((48, 32), np.uint8)).save(file, format="JPEG")


def sixteen_bit(file):
    Image.fromarray(np.zeros((48, 32), np.uint16)).save(file)


def linked_to_itself(file):
    file.unlink()
    file.symlink_to(file)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (Path.unlink, "is incomplete: 1 missing, such as video01/2/00001.png"),
        (rgb, "video01/2/00001.png: the PNG is RGB; a mask has one channel"),
        (truncated, "video01/2/00001.png: not a readable PNG"),
        (resized, "video01/2/00001.png: the mask is 24x16, the frame 48x32"),
        (jpeg, "video01/2/00001.png: not a readable PNG"),
        (sixteen_bit, "video01/2/00001.png: the PNG is I;16"),
        (linked_to_itself, "video01/2/00001.png"),
        (
            lambda f: shutil.copy(f, f.with_name("00009.png")),
            "holds 1 that mevis valid_u does not have, such as video01/2",
        ),
        (
            lambda f: shutil.copytree(f.parent, f.parents[1] / "9"),
            "mevis valid_u does not have, such as video01/9",
        ),
        (lambda f: shutil.copytree(f.parents[1], f.parents[2] / "dog"), "does not have, such as dog/0/00000.png"),
    ],
    ids=["missing", "rgb", "truncated", "size", "jpeg", "16 bit", "loop", "extra frame", "extra id", "extra video"],
)
@pytest.mark.parametrize("command", ["score", "pack"])
def test_bad_results_are_refused_by_name(command, damage, says, made, tmp_path):
    root = made("mevis")
    out = perfect("mevis", root, tmp_path / "out")
    damage(out / "video01/2/00001.png")
    if command == "score":
        assert says in refused("score", "mevis", root, out)
    else:
        assert says in refused("pack", "mevis", out, "-o", tmp_path / "sub.zip", "--root", root)
        assert not (tmp_path / "sub.zip").exists()


def test_davis_results_must_be_indexed(made, tmp_path):
    root = made("ref-davis17")
    out = perfect("ref-davis17", root, tmp_path / "out")
    file = out / "anno_3/video00/00001.png"
    Image.open(file).convert("L").save(file)
    assert "anno_3/video00/00001.png: the PNG is L; a mask has one channel (palette)" in refused(
        "score", "ref-davis17", root, out
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: a.pop(), "is incomplete: 1 samples have no answer, such as 5"),
        (lambda a: a[0].update(score=float("nan")), "NaN is no number"),
        (lambda a: a[0].update(score=None), "answer 0 has the score None"),
        (lambda a: a[0].update(image_id="v_9"), "answer 0 is to 'v_9', no sample of refcoco refcoco_val"),
        (lambda a: a[0].pop("segmentation"), "answer 0 must have image_id, segmentation and score"),
        (lambda a: a[0].update(segmentation={"size": [9, 9], "counts": "0"}), "bad RLE (it is [9, 9], the frame"),
        (lambda a: a[0].update(segmentation={"size": [48, 32], "counts": "01"}), "bad RLE (its runs do not fill"),
        (lambda a: a[0].update(segmentation="mask"), "bad RLE"),
    ],
)
def test_bad_answers_are_refused_by_number_or_name(change, says, made, tmp_path):
    root = made("refcoco")
    out = perfect("refcoco", root, tmp_path / "out")
    answers = json.loads((out / "predictions.json").read_text())
    change(answers)
    (out / "predictions.json").write_text(json.dumps(answers))
    assert says in refused("score", "refcoco", root, out)


@pytest.mark.parametrize("name", ["../../evil.png", "/evil.png", "video00\\..\\evil.png", "a/../../evil.png"])
def test_a_zip_cannot_write_outside_its_folder(name, made, tmp_path):
    archive = tmp_path / "results.zip"
    with zipfile.ZipFile(archive, "w") as members:
        members.writestr(zipfile.ZipInfo(name), b"evil")
    assert "leave its folder" in refused("score", "mevis", made("mevis"), archive)
    assert not list(tmp_path.rglob("evil.png"))


def test_a_zip_with_a_link_or_damage_is_refused(made, tmp_path):
    root, archive = made("mevis"), tmp_path / "results.zip"
    link = zipfile.ZipInfo("video00/0/00000.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(archive, "w") as members:
        members.writestr(link, "/etc/passwd")
    assert "is a link" in refused("score", "mevis", root, archive)
    archive.write_bytes(archive.read_bytes()[:-10])
    assert "neither a folder of results nor a zip" in refused("score", "mevis", root, archive)


def test_pack_without_a_noted_run_asks_for_the_root(made, tmp_path):
    out = perfect("mevis", made("mevis"), tmp_path / "out")
    assert "give --root and --split" in refused("pack", "mevis", out, "-o", tmp_path / "sub.zip")


# --- score masks -----------------------------------------------------------------------------------------------------


def write_video(folder, maps, mode):
    for t, ids in enumerate(maps):
        file = folder / f"{t:05d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        if mode == "P":
            write_ids(file, ids)
        elif mode == "1":
            Image.fromarray(ids > 0).save(file)
        else:
            Image.fromarray((ids > 0).astype(np.uint8) * 255).save(file)


@pytest.fixture
def maps():
    """Two objects through five frames; what was answered is shifted a little, and object 2 comes late."""
    truth = np.zeros((5, 60, 80), np.uint8)
    for t in range(5):
        truth[t, 10 : 30 + t, 10:40] = 1
        if t:
            truth[t, 35:50, 30 + t : 60] = 2
    return np.roll(truth, 2, axis=2), truth


def test_masks_of_two_folders_are_scored_per_object_and_in_the_mean(maps, tmp_path):
    answered, truth = maps
    for folder, content in (("results", answered), ("truth", truth)):
        write_video(tmp_path / folder / "clip", content, "P")
    status, shown, _ = run(
        "score", "masks", tmp_path / "results", tmp_path / "truth", "--json", tmp_path / "scores.json"
    )
    assert status == 0
    assert "J&F" in shown
    scores = json.loads((tmp_path / "scores.json").read_text())
    for row, number in zip(scores["rows"], (1, 2), strict=True):
        pairs = [(a == number, g == number) for a, g in zip(answered, truth, strict=True)]
        j, f = np.mean([plain_region(*p) for p in pairs]), np.mean([plain_contour(*p) for p in pairs])
        assert (row["values"]["J"], row["values"]["F"]) == (pytest.approx(j), pytest.approx(f))
    mean = np.mean([row["values"]["J&F"] for row in scores["rows"]])
    assert scores["summary"]["J&F"] == pytest.approx(mean)
    assert 0 < scores["summary"]["J&F"] < 1


def test_drop_ends_leaves_the_first_and_last_frame_out(maps, tmp_path):
    answered, truth = maps
    write_video(tmp_path / "truth/clip", truth, "P")
    write_video(tmp_path / "results/clip", answered, "P")
    middle = score_masks(tmp_path / "results", tmp_path / "truth", drop_ends=True)
    assert [row.values["frames"] for row in middle.rows] == [3, 3]
    expected = np.mean([plain_region(a == 1, g == 1) for a, g in zip(answered[1:4], truth[1:4], strict=True)])
    assert middle.rows[0].values["J"] == pytest.approx(expected)
    for end in ("00000.png", "00004.png"):  # they need not even be there
        (tmp_path / "results/clip" / end).unlink()
    assert score_masks(tmp_path / "results", tmp_path / "truth", drop_ends=True).summary == middle.summary


@pytest.mark.parametrize("of_results", ["L", "1", "P"])
@pytest.mark.parametrize("of_truth", ["L", "1", "P"])
def test_binary_masks_score_the_same_in_every_form(of_results, of_truth, maps, tmp_path):
    answered, truth = ((m == 1).astype(np.uint8) for m in maps)
    truth[0] = 0  # the object is not there at first
    write_video(tmp_path / "truth/clip", truth, of_truth)
    write_video(tmp_path / "results/clip", answered, of_results)
    scores = score_masks(tmp_path / "results", tmp_path / "truth")
    assert scores.summary["J"] == pytest.approx(
        np.mean([plain_region(a == 1, g == 1) for a, g in zip(answered, truth, strict=True)])
    )


def test_255_is_void_in_indexed_truth_even_when_it_comes_before_any_object(maps, tmp_path):
    answered, truth = maps
    truth = truth.copy()
    truth[0] = 0
    truth[:, :5] = 255  # in the first frame nothing else
    answered = np.where(truth == 255, 1, np.where(truth == 0, 0, truth)).astype(np.uint8)
    write_video(tmp_path / "truth/clip", truth, "P")
    write_video(tmp_path / "results/clip", answered, "P")
    assert score_masks(tmp_path / "results", tmp_path / "truth").summary["J&F"] == 1.0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r, t: (r / "clip/00002.png").unlink(), "results/clip/00002.png: the mask is missing"),
        (
            lambda r, t: shutil.copy(r / "clip/00002.png", r / "clip/00007.png"),
            "00007.png: the truth has no such",
        ),
        (lambda r, t: shutil.copytree(r / "clip", r / "other"), "truth: the video other is missing"),
        (lambda r, t: shutil.copytree(t / "clip", t / "other"), "results: the video other is missing"),
        (lambda r, t: shutil.rmtree(r), "neither a folder of results nor a zip"),
        (lambda r, t: shutil.rmtree(t / "clip"), "holds no folders of masks"),
        (lambda r, t: rgb(r / "clip/00002.png"), "results/clip/00002.png: the PNG is RGB"),
        (lambda r, t: truncated(t / "clip/00002.png"), "truth/clip/00002.png: not a readable PNG"),
        (lambda r, t: write_ids(r / "clip/00002.png", np.zeros((8, 8), np.uint8)), "the mask is 8x8, the frame 60x80"),
        (
            lambda r, t: write_ids(r / "clip/00002.png", np.full((60, 80), 9, np.uint8)),
            "number 9, the truth has 1, 2",
        ),
        (lambda r, t: write_ids(r / "clip/00002.png", np.full((60, 80), 255, np.uint8)), "255 beside others"),
        (lambda r, t: [write_ids(f, np.zeros((60, 80), np.uint8)) for f in t.rglob("*.png")], "hold no object"),
    ],
)
def test_folders_that_do_not_fit_are_refused_by_name(change, says, maps, tmp_path):
    answered, truth = maps
    write_video(tmp_path / "truth/clip", truth, "P")
    write_video(tmp_path / "results/clip", answered, "P")
    change(tmp_path / "results", tmp_path / "truth")
    assert says in refused("score", "masks", tmp_path / "results", tmp_path / "truth")


def test_a_folder_that_links_to_itself_ends_in_one_line(maps, tmp_path):
    write_video(tmp_path / "truth/clip", maps[1], "P")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused("score", "masks", tmp_path / "loop", tmp_path / "truth")
    (tmp_path / "results").mkdir()
    (tmp_path / "results/clip").symlink_to(tmp_path / "results/clip")
    refused("score", "masks", tmp_path / "results", tmp_path / "truth")


def test_fewer_than_three_frames_have_no_middle(maps, tmp_path):
    for folder in ("results", "truth"):
        write_video(tmp_path / folder / "clip", maps[1][:2], "P")
    assert "without the first and the last none is left" in refused(
        "score", "masks", tmp_path / "results", tmp_path / "truth", "--drop-ends"
    )


# --- folders as tools write them --------------------------------------------------------------------------------------


def zipped(folder, archive, *, top=""):
    with zipfile.ZipFile(archive, "w") as members:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                members.write(path, f"{top}{path.relative_to(folder)}")
    return archive


@pytest.mark.parametrize("name", ["mevis", "ref-davis17", "a2d-sentences"])
def test_a_zip_with_a_folder_on_top_is_taken_and_a_folder_too(name, made, tmp_path):
    root, out = made(name), tmp_path / "out"
    perfect(name, root, out)
    archive = zipped(out, tmp_path / "top.zip", top="results/")
    (tmp_path / "outer").mkdir()
    out.rename(tmp_path / "outer" / "x")
    for results in (archive, tmp_path / "outer"):
        status, shown, error = run("score", name, root, results, "-o", tmp_path / "s")
        assert (status, error) == (0, ""), error
        assert "1.0" in shown or "100.0" in shown


def test_a_zip_that_is_incomplete_is_called_by_its_own_name(made, tmp_path):
    root, out = made("mevis"), tmp_path / "out"
    perfect("mevis", root, out)
    next(out.rglob("*.png")).unlink()
    line = refused("score", "mevis", root, zipped(out, tmp_path / "sub.zip", top="res/"))
    assert line.startswith(f"deixis: {tmp_path / 'sub.zip'}")
    assert "is incomplete: 1 missing" in line
    assert "deixis-" not in line.replace(str(tmp_path), "")


@pytest.mark.parametrize("damage", ["mask_dict.json", "meta_expressions_v2.json", "frame", "empty frame"])
@pytest.mark.parametrize("split", ["valid_u", "train"])
def test_data_check_ends_with_2_where_something_that_is_there_is_broken(damage, split, made, tmp_path):
    root = made("mevis")
    assert run("data", "check", "mevis", root)[0] == 0
    path = next((root / split).rglob("*.jpg")) if "frame" in damage else root / split / damage
    path.write_bytes(b"" if damage == "empty frame" else path.read_bytes()[: path.stat().st_size // 2])
    status, shown, error = run("data", "check", "mevis", root)
    assert status == 2, shown
    assert path.name in shown
    assert error.startswith("deixis: ")


def test_a_split_that_was_never_fetched_is_no_problem_and_one_in_part_is(made):
    root = made("mevis")
    shutil.rmtree(root / "train")
    assert run("data", "check", "mevis", root)[0] == 0
    (root / "valid_u" / "mask_dict.json").unlink()
    assert run("data", "check", "mevis", root)[0] == 2


def test_ref_youtube_vos_opens_without_the_test_file_that_nobody_can_get(made):
    root = made("ref-youtube-vos")
    with_file = open_benchmark("ref-youtube-vos", root, "valid")
    shutil.rmtree(root / "meta_expressions" / "test")
    shutil.rmtree(root / "test")
    without = open_benchmark("ref-youtube-vos", root, "valid")
    assert [s.id for s in without.samples] == [s.id for s in with_file.samples]
    assert without.notes == ("1 videos without frames are taken for the test's, whose file is not there",)
    assert run("data", "check", "ref-youtube-vos", root, "--split", "valid")[0] == 0


def test_of_a_whole_ref_youtube_vos_a_part_of_the_frames_is_not_enough(made, monkeypatch):
    root = made("ref-youtube-vos")
    shutil.rmtree(root / "meta_expressions" / "test")
    monkeypatch.setitem(ref_youtube_vos.EXPECTED, "valid", {"videos": 1})
    with pytest.raises(DeixisError, match="of 1 of validation 2 have frames"):
        open_benchmark("ref-youtube-vos", root, "valid")


@pytest.mark.parametrize("name", ["mevis", "ref-davis17", "ref-youtube-vos", "a2d-sentences"])
def test_a_root_that_is_one_folder_off_or_a_zip_is_named(name, made, tmp_path):
    root = made(name)
    outer = tmp_path / "outer"
    outer.mkdir()
    root.rename(outer / name)
    assert f"it is in {outer / name}: give that folder" in refused("data", "check", name, outer)
    archive = zipped(outer / name, tmp_path / "data.zip")
    assert "is a zip, unpack it first" in refused("data", "check", name, archive)
    assert "there is no folder" in refused("data", "check", name, tmp_path / "nowhere")


@pytest.mark.parametrize("way", ["mounted", "folder", "read-only"])
def test_pack_writes_to_hard_places_or_refuses_before_it_reads(way, made, tmp_path, monkeypatch):
    root, out = made("mevis"), tmp_path / "out"
    perfect("mevis", root, out)
    archive = tmp_path / "sub.zip"
    words = ("pack", "mevis", out, "-o", archive, "--root", root)
    if way == "folder":
        archive.mkdir()
        assert "it is a folder; name a file" in refused(*words)
        return
    archive.write_bytes(b"old")
    plain = os.replace

    def busy(source, target):
        if Path(target) == archive:
            raise OSError(errno.EBUSY, "Device or resource busy")
        plain(source, target)

    monkeypatch.setattr(os, "replace", busy)
    if way == "read-only":  # the parent; the file itself is ours
        touch = Path.touch
        monkeypatch.setattr(
            Path, "touch", lambda self, *a, **k: touch(self, *a, **k) if self.parent != tmp_path else busy("", archive)
        )
    assert run(*words)[0] == 0
    assert zipfile.ZipFile(archive).testzip() is None
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
