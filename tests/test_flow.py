"""Flow as a target: estimated once, kept in a cache that is checked, films streamed, broken ones counted."""

from __future__ import annotations

import builtins
import logging
import sys
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from deixis.benchmarks.fixtures import tiny_videos, write_film, write_jpegs
from deixis.cli import app
from deixis.losses.pretraining import charbonnier, flow_loss, hide_words, info_nce, masked_words
from deixis.synthetic.world import World
from deixis.synthetic.world_config import WorldConfig
from deixis.systems.slvp import EarlierRows
from deixis.training import captions
from deixis.training import flow as flow_file
from deixis.training.captions import CaptionedFilm, VideoCaptions, shuffled, write_list
from deixis.training.flow import (
    FlowCache,
    FlowError,
    FlowSettings,
    agree,
    dis_flow,
    endpoint_error,
    estimate,
    fill_cache,
    flow_of_film,
    flow_target,
    median_of,
    to_cells,
)
from deixis.training.recipes.slvp import contrast
from deixis.types import DeixisError

SETTINGS = FlowSettings(rate=8.0, short_side=32, long_side=64)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEIXIS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def films(tmp_path: Path) -> VideoCaptions:
    """Three films and one that is none; the list lies beside them."""
    for video in tiny_videos(3, frames=6):
        write_film(tmp_path / f"{video.id}.mp4", video)
    (tmp_path / "broken.mp4").write_bytes(b"no film at all")
    rows = [("video00.mp4", "a red box"), ("broken.mp4", "nothing"), ("video01.mp4", "two boxes, red and green")]
    write_list(tmp_path / "list.csv", [*rows, ("video02.mp4", "boxes")])
    return VideoCaptions(tmp_path / "list.csv")


# --- the list ---------------------------------------------------------------------------------------------------------


def test_rows_are_read_by_number_with_paths_from_the_lists_folder(films: VideoCaptions, tmp_path: Path) -> None:
    assert len(films) == 4
    assert films[2] == CaptionedFilm(film=tmp_path / "video01.mp4", caption="two boxes, red and green")
    assert films[0].film.is_file()


def test_a_list_of_any_length_is_never_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By construction: after the index is made, one row reads 8 bytes and one line."""
    path = tmp_path / "long.csv"
    with open(path, "w") as file:
        file.write("film,caption,fps\n")
        file.writelines(f"film{i}.mp4,caption number {i},\n" for i in range(20_000))
    films = VideoCaptions(path)
    assert len(films) == 20_000
    assert all(np.size(value) < 100 for value in vars(films).values() if not isinstance(value, Path | int))
    taken = 0
    real_open = builtins.open

    class Counted:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Counted:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def seek(self, place: int) -> None:
            self.file.seek(place)

        def read(self, size: int) -> bytes:
            return self.note(self.file.read(size))

        def readline(self) -> bytes:
            return self.note(self.file.readline())

        def note(self, data: bytes) -> bytes:
            nonlocal taken
            taken += len(data)
            return data

    monkeypatch.setattr(captions, "open", lambda *a, **k: Counted(real_open(*a, **k)), raising=False)
    assert films[19_999].caption == "caption number 19999"
    assert taken < 100


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("video,text\na,b\n", "the first row is 'video,text'"),
        ("film,caption\n\n\n", "names no film"),
        ("film,caption\na.mp4,\n", "row 1: a film and a caption are needed"),
        ("film,caption\na.mp4,one, two\n", "row 1: 3 values, 2 columns"),
        ('film,caption\na.mp4,"open\n', "row 1: not a row of a CSV"),
        ("film,caption,fps\na,b,fast\n", "fps must be a number, got 'fast'"),
    ],
)
def test_a_list_that_cannot_be_read_ends_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(DeixisError, match=words.replace("(", "\\(")):
        VideoCaptions(tmp_path / "x.csv")[0]


def test_a_changed_list_is_indexed_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("film,caption\na.mp4,one\n")
    assert len(VideoCaptions(path)) == 1
    path.write_text("film,caption\na.mp4,one\nb.mp4,two more\n")
    assert VideoCaptions(path)[1].caption == "two more"


@pytest.mark.parametrize("count", [1, 2, 5, 16, 17, 1000])
def test_a_shuffle_gives_every_row_once_and_each_epoch_its_own_order(count: int) -> None:
    orders = [[shuffled(i, count, 7, epoch) for i in range(count)] for epoch in (0, 1)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert count < 5 or orders[0] != orders[1] != list(range(count))


# --- estimating -------------------------------------------------------------------------------------------------------


def test_dis_comes_within_a_pixel_of_the_exact_flow_of_world() -> None:
    """A loose bound on the estimator: measured 0.23 pixels, 0.12 where it is trusted."""
    config = WorldConfig(size=(120, 216), frames=8, objects=(1, 3), camera_moves=0.5)
    films = [World("valid_u", config).film(i) for i in range(4)]
    found = [estimate(film.frames) for film in films]
    errors = [endpoint_error(f, film.flow) for (f, _), film in zip(found, films, strict=True) if film.flow is not None]
    valid = [v for _, v in found]
    assert np.mean([e.mean() for e in errors]) < 0.5
    trusted = np.mean([e[v].mean() for e, v in zip(errors, valid, strict=True)])
    assert trusted < 0.75 * np.mean([e.mean() for e in errors])  # the check finds where it errs
    assert all(v.mean() > 0.7 for v in valid)


def test_dis_does_not_depend_on_the_number_of_threads() -> None:
    import cv2

    frames = World("train", WorldConfig(size=(96, 160), frames=3)).film(0).frames
    before = cv2.getNumThreads()
    try:
        flows = []
        for threads in (1, 4):
            cv2.setNumThreads(threads)
            flows.append(dis_flow(frames))
            assert cv2.getNumThreads() == threads
    finally:
        cv2.setNumThreads(before)
    assert np.array_equal(*flows)


def test_forward_and_backward_disagree_where_something_is_covered_or_leaves() -> None:
    forward, backward = np.zeros((8, 12, 2), np.float32), np.zeros((8, 12, 2), np.float32)
    forward[2:4, 2:4, 0] = 4  # an object of 2x2 goes right ...
    backward[2:4, 6:8, 0] = -4  # ... and back; what it covers does not come back
    forward[:, 11, 0] = 3  # out of the picture
    valid = agree(forward, backward)
    assert valid[2:4, 2:4].all()
    assert not valid[2:4, 6:8].any()
    assert not valid[:, 11].any()
    assert valid[5:, :11].all()


def test_a_target_has_no_camera_motion_is_in_units_and_clipped() -> None:
    flow = np.full((1, 8, 8, 2), 3.0, np.float32)
    flow[0, 0, 0] = [3.0 + 0.02 * 50, 3.0]  # one unit of a frame whose diagonal is 50
    flow[0, 0, 1] = [1000.0, 3.0]
    target = flow_target(flow, (30, 40), 0.02, 5.0)
    assert median_of(flow).ravel().tolist() == [3.0, 3.0]
    assert target[0, 0, :2, 0].tolist() == pytest.approx([1.0, 5.0])
    assert np.abs(target).sum() == pytest.approx(6.0)


def test_flow_is_averaged_over_cells() -> None:
    flow = np.zeros((1, 4, 8, 2), np.float32)
    flow[0, :, :4] = 2.0
    assert to_cells(flow, (1, 2))[0, 0, :, 0].tolist() == [2.0, 0.0]


@pytest.mark.parametrize(
    ("name", "words"),
    [("farneback", "unknown flow estimator"), ("nowhere:flow", "cannot be imported"), ("math:pi", "is no function")],
)
def test_an_unknown_estimator_is_refused(name: str, words: str) -> None:
    with pytest.raises(DeixisError, match=words):
        estimate(np.zeros((2, 16, 16, 3), np.uint8), name)


def half_a_pixel(frames: np.ndarray) -> np.ndarray:
    """A hook for the tests."""
    return np.full((len(frames) - 1, *frames.shape[1:3], 2), 0.5, np.float32)


def wrong_shape(frames: np.ndarray) -> np.ndarray:
    return np.zeros((len(frames), 2, 2), np.float32)


def test_a_hook_takes_the_place_of_dis_and_a_wrong_one_ends_the_run(films: VideoCaptions, tmp_path: Path) -> None:
    sys.modules.setdefault("test_flow", sys.modules[__name__])
    hooked = replace(SETTINGS, estimator="test_flow:half_a_pixel")
    entry = FlowCache(tmp_path / "flow", hooked).get(films[0])
    assert np.all(entry.flow == 0.5)
    with pytest.raises(FlowError, match="must give"):
        fill_cache(films, FlowCache(tmp_path / "flow", replace(SETTINGS, estimator="test_flow:wrong_shape")))


# --- the cache --------------------------------------------------------------------------------------------------------


def test_flow_is_made_once_and_read_back_alike(films: VideoCaptions, tmp_path: Path) -> None:
    cache = FlowCache(tmp_path / "flow", SETTINGS)
    made, there = cache.find_or_make(films[0])
    again, there_now = cache.find_or_make(films[0])
    assert (there, there_now) == (False, True)
    assert made.size == again.size == (48, 32)
    assert np.array_equal(made.flow, again.flow)  # also what was just made: else a run would depend on the cache
    assert np.array_equal(made.valid, again.valid)
    assert made.flow.shape == (5, 12, 8, 2)
    exact = flow_of_film(films[0], SETTINGS)
    assert np.allclose(exact.flow, made.flow, atol=0.01)


def test_the_same_bytes_under_another_name_share_their_entry_and_other_bytes_do_not(
    films: VideoCaptions, tmp_path: Path
) -> None:
    cache = FlowCache(tmp_path / "flow", SETTINGS)
    cache.get(films[0])
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(films[0].film.read_bytes())
    assert cache.find_or_make(replace(films[0], film=copy))[1]
    copy.write_bytes(films[2].film.read_bytes())
    assert not cache.find_or_make(replace(films[0], film=copy))[1]
    assert not FlowCache(tmp_path / "flow", replace(SETTINGS, rate=4.0)).find_or_make(films[0])[1]


def change(place: Path, how: str) -> None:
    """Damage an entry in one way."""
    tensors = load_file(place)
    if how == "cut off":
        place.write_bytes(place.read_bytes()[:-7])
    elif how == "empty":
        place.write_bytes(b"")
    elif how == "a number is another":
        data = bytearray(place.read_bytes())
        data[-1] ^= 1
        place.write_bytes(bytes(data))
    elif how == "no facts":
        save_file(tensors, place)
    elif how == "of another film":
        other = next(p for p in place.parents[1].rglob("*.safetensors") if p != place)
        place.write_bytes(other.read_bytes())


@pytest.mark.parametrize("how", ["cut off", "empty", "a number is another", "no facts", "of another film"])
def test_a_damaged_entry_is_noted_and_made_anew(
    films: VideoCaptions, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = FlowCache(tmp_path / "flow", SETTINGS)
    good = cache.get(films[0])
    cache.get(films[2])
    place = cache.place(flow_file.content_of(films[0]))
    change(place, how)
    with caplog.at_level(logging.WARNING):
        mended, there = cache.find_or_make(films[0])
    assert not there
    assert "made anew" in caplog.text
    assert np.array_equal(mended.flow, good.flow)
    assert cache.find_or_make(films[0])[1]


def test_an_entry_of_an_older_version_is_not_taken(
    films: VideoCaptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FlowCache(tmp_path / "flow", SETTINGS)
    cache.get(films[0])
    monkeypatch.setattr(flow_file, "FLOW_VERSION", 2)
    assert not cache.find_or_make(films[0])[1]


def test_the_list_is_done_once_broken_films_are_counted_and_a_second_run_finds_all_there(
    films: VideoCaptions, tmp_path: Path
) -> None:
    cache, seen = FlowCache(tmp_path / "flow", SETTINGS), []
    tally = fill_cache(films, cache, progress=lambda done, total: seen.append((done, total)))
    assert (tally.made, tally.found, tally.broken) == (3, 0, 1)
    assert "row 2" in tally.reasons[0]
    assert seen[-1] == (4, 4)
    assert not list((tmp_path / "flow").rglob("*.part"))
    next((tmp_path / "flow").rglob("*.safetensors")).unlink()  # as if stopped before the last
    tally = fill_cache(films, cache)
    assert (tally.made, tally.found, tally.broken) == (1, 2, 1)


@pytest.mark.slow
def test_two_processes_do_what_one_does(films: VideoCaptions, tmp_path: Path) -> None:
    one, two = (FlowCache(tmp_path / name, SETTINGS) for name in ("one", "two"))
    fill_cache(films, one)
    tally = fill_cache(films, two, workers=2)
    assert (tally.made, tally.broken) == (3, 1)
    files = [sorted(p.relative_to(c.folder) for p in c.folder.rglob("*.safetensors")) for c in (one, two)]
    assert files[0] == files[1]
    assert all((one.folder / p).read_bytes() == (two.folder / p).read_bytes() for p in files[0])


def test_a_process_that_is_killed_while_flow_is_estimated_is_one_line(
    films: VideoCaptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_turn(*_: Any) -> Any:
        raise BrokenProcessPool("A process in the process pool was terminated abruptly")
        yield

    monkeypatch.setattr(flow_file, "_in_turn", in_turn)
    with pytest.raises(DeixisError, match="one of 2 processes was killed; is there memory for so many"):
        fill_cache(films, FlowCache(tmp_path / "flow", SETTINGS), workers=2)


def test_a_cache_that_cannot_be_written_ends_the_run(films: VideoCaptions, tmp_path: Path) -> None:
    (tmp_path / "flow").write_text("a file where the folder should be")
    with pytest.raises(FlowError, match="cannot be written"):
        fill_cache(films, FlowCache(tmp_path / "flow", SETTINGS))


def test_a_folder_of_frames_is_a_film_with_its_own_rate(tmp_path: Path) -> None:
    video = tiny_videos(1, frames=6)[0]
    write_jpegs(tmp_path / "frames", video, [f"{i:03d}" for i in range(6)])
    row = CaptionedFilm(film=tmp_path / "frames", caption="boxes", fps=4.0)
    entry = flow_of_film(row, replace(SETTINGS, rate=2.0))
    assert entry.seconds.tolist() == [0.0, 0.5, 1.0]
    assert len(flow_of_film(row, replace(SETTINGS, rate=2.0, most=2)).flow) == 1


def test_the_command_says_what_it_did(films: VideoCaptions, tmp_path: Path) -> None:
    words = ["data", "flow", str(films.path), "-o", str(tmp_path / "flow"), "--set", "short_side=32"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "flow of 3 films made, of 0 there already; 1 left out" in done.output
    again = CliRunner().invoke(app, words)
    assert "flow of 0 films made, of 3 there already; 1 left out" in again.output
    wrong = CliRunner().invoke(app, [*words, "--set", "size=3"])
    assert wrong.exit_code == 2
    assert "unknown field" in wrong.output
    assert CliRunner().invoke(app, [*words, "--workers", "0"]).exit_code == 2


# --- losses -----------------------------------------------------------------------------------------------------------


def test_charbonnier_is_the_absolute_value_but_smooth_at_nothing() -> None:
    error = torch.tensor([0.0, 3.0, -2.0], requires_grad=True)
    charbonnier(error).sum().backward()
    assert charbonnier(error).tolist() == pytest.approx([0.0, 3.0, 2.0], abs=2e-3)
    assert error.grad is not None
    assert error.grad.tolist() == pytest.approx([0.0, 1.0, -1.0], abs=1e-3)


def test_flow_loss_by_hand_and_only_where_it_is_valid() -> None:
    truth = torch.zeros(1, 1, 2, 2, 3)
    flow = truth.clone()
    flow[0, 0, 0, 0, 0] = 2.0  # one cell of six, one error down and one to the right
    everywhere = torch.ones(1, 1, 2, 3, dtype=torch.bool)
    expected = 2 / 6 + 0.5 * (2 / 3 + 2 / 4)
    assert float(flow_loss(flow, truth, everywhere)) == pytest.approx(expected, abs=2e-3)
    hidden = everywhere.clone()
    hidden[0, 0, 0, 0] = False
    assert float(flow_loss(flow, truth, hidden)) == pytest.approx(0.0, abs=1e-6)
    assert float(flow_loss(flow, truth, ~everywhere)) == 0.0


def test_info_nce_prefers_the_right_pairs_and_forgives_equal_captions() -> None:
    unit = torch.eye(3)
    none = torch.eye(3, dtype=torch.bool)
    right, wrong = float(info_nce(unit, unit, none)), float(info_nce(unit, unit.roll(1, 0), none))
    assert right < 1e-3 < 5 < wrong
    twins = unit[[0, 0, 2]]  # two clips with the same words: chance between them, unless they are forgiven
    same = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    assert float(info_nce(twins, twins, none)) == pytest.approx(2 / 3 * np.log(2), abs=1e-3)
    assert float(info_nce(twins, twins, same)) < 1e-3


def test_further_clips_and_sentences_are_negatives_unless_their_caption_is_the_same() -> None:
    unit, none = torch.eye(4)[:2], torch.eye(2, 4, dtype=torch.bool)
    others = (torch.eye(4)[2:], unit)  # their sentences are ours: each of our clips finds its sentence twice
    assert float(info_nce(unit, unit, none, others=(torch.eye(4)[2:], torch.eye(4)[2:]))) < 1e-3
    assert float(info_nce(unit, unit, none, others=others)) == pytest.approx(np.log(2) / 2, abs=1e-3)
    same = none | torch.eye(2, 4, dtype=torch.bool).roll(2, 1)
    assert float(info_nce(unit, unit, same, others=others)) < 1e-3


def test_the_queue_holds_the_latest_and_is_part_of_the_checkpoint() -> None:
    queue = EarlierRows(5, 2)
    assert [len(x) for x in queue.kept()] == [0, 0, 0]
    for first in (0, 3):
        numbers = torch.arange(first, first + 3)
        queue.add(numbers[:, None].expand(3, 2).float(), -numbers[:, None].expand(3, 2).float(), numbers)
    clips, sentences, captions = queue.kept()
    assert sorted(captions.tolist()) == [1, 2, 3, 4, 5]
    assert torch.equal(clips[:, 0].long(), captions)
    assert torch.equal(sentences, -clips)
    again = EarlierRows(5, 2)
    again.load_state_dict(queue.state_dict())
    assert torch.equal(again.kept()[2], captions)


class Learner(torch.nn.Module):
    """Nothing but the queue of a model that is being trained."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = EarlierRows(6, 3)


def two_contrasts(rank: int, size: int, folder: str) -> None:
    """What a process of ``size`` finds in two steps of four clips, its share of them."""
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    draw, model, found = torch.Generator().manual_seed(0), Learner(), []
    for _ in range(2):
        clips, sentences = (torch.nn.functional.normalize(torch.randn(4, 3, generator=draw), dim=1) for _ in range(2))
        own, words = slice(4 * rank // size, 4 * (rank + 1) // size), ["a dog", "a cat", "a dog", "a cow"]
        found.append(float(contrast(model, clips[own], sentences[own], words[own], 0.5)))
    torch.save({"losses": found, "queue": model.queue.state_dict()}, f"{folder}/{size}-{rank}.pt")


@pytest.mark.slow
def test_negatives_are_those_of_all_processes_and_of_the_steps_before(tmp_path: Path) -> None:
    two_contrasts(0, 1, str(tmp_path))
    torch.multiprocessing.spawn(two_contrasts, args=(2, str(tmp_path)), nprocs=2)
    one, first, second = (torch.load(tmp_path / name) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    for whole, a, b in zip(one["losses"], first["losses"], second["losses"], strict=True):
        assert (a + b) / 2 == pytest.approx(whole, abs=1e-6)  # each process has half of the rows, and all columns
    for name, rows in one["queue"].items():
        assert torch.equal(rows, first["queue"][name]), name
        assert torch.equal(rows, second["queue"][name]), name
    alone = Learner().eval()
    clips = torch.eye(3)
    assert contrast(alone, clips, clips, ["a", "b", "c"], 0.5) > 0
    assert int(alone.queue.added) == 0


def test_words_are_hidden_in_every_text_and_special_tokens_never() -> None:
    tokens = torch.arange(40).view(4, 10)
    special = torch.zeros(4, 10, dtype=torch.bool)
    special[:, 0] = special[:, 8:] = True
    draw = torch.rand(4, 10, generator=torch.Generator().manual_seed(0))
    draw[0] = 0.9  # chance would hide nothing here
    changed, hidden = hide_words(tokens, special, 99, 0.15, draw)
    assert (hidden.sum(1) >= 1).all()
    assert not (hidden & special).any()
    assert (changed[hidden] == 99).all()
    assert torch.equal(changed[~hidden], tokens[~hidden])
    nothing = torch.ones(1, 3, dtype=torch.bool)
    assert not hide_words(tokens[:1, :3], nothing, 99, 0.5, torch.rand(1, 3))[1].any()


def test_masked_words_learn_from_the_hidden_ones_only() -> None:
    logits = torch.zeros(1, 2, 4, requires_grad=True)
    loss = masked_words(logits, torch.tensor([[1, 2]]), torch.tensor([[True, False]]))
    assert float(loss.detach()) == pytest.approx(np.log(4))
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[0, 1].abs().sum() == 0
    assert float(masked_words(logits, torch.tensor([[1, 2]]), torch.zeros(1, 2, dtype=torch.bool)).detach()) == 0.0
