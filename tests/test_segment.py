"""The path: films and words in, tracks out; identity over windows; presence over the film."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.films import Colours, ColoursConfig, colours, moving, square, write_film, write_folder

import deixis
from deixis.devices import choose_device, choose_precision, cpu_has_bf16
from deixis.inference import model_size, predict_clip, segment
from deixis.linking import Linking, Presence, Window, best_path
from deixis.tracks import Candidates, TrackBuilder, select, to_source
from deixis.types import DeixisError, Expression, Prediction, encode_rle
from deixis.video import Video
from deixis.waiting import USUAL, DiskRles, most_bytes, pack_logits, unpack_logits

SHAPE = (72, 96)
CPU = torch.device("cpu")


def overlap(masks: np.ndarray, truth: np.ndarray) -> float:
    return float((masks & truth).sum() / max(1, (masks | truth).sum()))


def red(pictures: list[np.ndarray]) -> np.ndarray:
    return np.stack([p[..., 0].astype(int) - p[..., 1] > 100 for p in pictures])


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_film(tmp_path_factory.mktemp("film") / "two.mp4", moving(23, colours=("red", "green")))


def test_each_expression_gets_the_masks_of_its_object_at_source_size(film: Path) -> None:
    one, two = segment(film, ["the red square", Expression("a green one", id="7")], model=colours())
    pictures = moving(23, colours=("red", "green"))
    assert overlap(np.asarray(one.masks), red(pictures)) > 0.97
    assert overlap(np.asarray(two.masks), np.stack([p[..., 1] > 100 for p in pictures])) > 0.97
    assert (one.expression.text, two.expression.id) == ("the red square", "7")
    assert one.masks[3].shape == SHAPE
    assert one.masks[3].dtype == bool
    assert len(one) == 23
    assert list(one.times) == pytest.approx([i / 12 for i in range(23)], abs=1e-3)
    assert one.presence > 0.9
    assert one.scores.min() > 0.9


def test_an_object_that_is_not_there_gives_empty_masks_and_a_low_presence(film: Path) -> None:
    (track,) = segment(film, "a blue square", model=colours())
    assert not np.asarray(track.masks).any()
    assert not track.present
    assert track.presence < 0.1
    assert len(track) == 23


@pytest.mark.parametrize(("shape", "size"), [((61, 83), None), ((150, 100), None), ((90, 300), None), (SHAPE, 40)])
def test_masks_lie_where_the_object_lies_whatever_the_size_of_the_film(
    tmp_path: Path, shape: tuple[int, int], size: int | None
) -> None:
    pictures = [square(shape, "red", shape[0] - 30, shape[1] - 40 + t) for t in range(6)]
    folder = write_folder(tmp_path / "frames", pictures)
    (track,) = segment(folder, "red", model=colours(), size=size)
    assert overlap(np.asarray(track.masks), red(pictures)) > 0.88  # a cell of the mask is up to five pixels


def test_a_clip_is_encoded_once_whatever_the_number_of_expressions(film: Path) -> None:
    system = colours()
    segment(film, [f"red number {i}" for i in range(40)], model=system)
    assert system.encoded == 5  # windows of 5 in 23 frames


def test_the_film_may_begin_late_end_early_and_skip(film: Path) -> None:
    (track,) = segment(Video(film, start=0.5, end=1.5, every=2), "red", model=colours())
    assert list(track.times) == pytest.approx(
        [0.5, 0.5 + 2 / 12, 0.5 + 4 / 12, 1.0, 1.0 + 2 / 12, 1.0 + 4 / 12], abs=1e-3
    )
    assert overlap(np.asarray(track.masks), red(moving(23, colours=("red", "green")))[6:18:2]) > 0.97


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"candidates": 0}, "1 or more candidates and an overlap of 0 or more frames, got 0 and 0"),
        ({"overlap": -1}, "got 6 and -1"),
        ({"keep": 1.5}, "keep must lie between 0 and 1, got 1.5"),
        ({"presence_share": 0.0}, "presence_share must lie above 0 and up to 1, got 0.0"),
        ({"floor": 0.0}, "floor must lie above 0 and up to 1, got 0.0"),
    ],
)
def test_numbers_of_the_linking_that_cannot_be_are_refused(numbers: dict[str, float], said: str) -> None:
    with pytest.raises(DeixisError, match=said):
        Linking(**numbers)  # type: ignore[arg-type]


def test_expressions_may_come_from_a_generator_and_nothing_is_refused_by_type(film: Path) -> None:
    tracks = segment(film, (words for words in ("red", "where is the green one?")), model=colours())
    assert [track.expression.text for track in tracks] == ["red", "where is the green one?"]
    with pytest.raises(DeixisError, match="text or a list of texts, got NoneType"):
        segment(film, None, model=colours())  # type: ignore[arg-type]


@pytest.mark.parametrize("shared", [0, 1, 3])
def test_windows_that_share_frames_answer_each_frame_once(film: Path, shared: int) -> None:
    (track,) = segment(film, "red", model=colours(), linking=Linking(overlap=shared))
    assert len(track) == 23
    assert overlap(np.asarray(track.masks), red(moving(23, colours=("red", "green")))) > 0.97


def test_masks_on_disk_are_those_in_memory(film: Path, tmp_path: Path) -> None:
    (memory,) = segment(film, "red", model=colours())
    (disk,) = segment(film, "red", model=colours(), folder=tmp_path)
    assert isinstance(disk.masks.rles, DiskRles)
    assert np.array_equal(np.asarray(memory.masks), np.asarray(disk.masks))
    assert [m.sum() for m in disk.masks[3:6]] == [m.sum() for m in memory.masks[3:6]]
    assert list(tmp_path.iterdir()) == []  # the file has no name that could stay behind


def test_progress_counts_frames_and_stop_keeps_what_is_answered(film: Path) -> None:
    seen: list[int] = []
    (track,) = segment(film, "red", model=colours(), progress=seen.append, stop=lambda: len(seen) == 2)
    assert seen == [5, 10]
    assert len(track) == 10
    assert track.masks[9].any()


def test_reduced_precision_gives_nearly_the_same_masks(film: Path) -> None:
    (full,), (reduced,) = (segment(film, "red", model=colours(), precision=p) for p in ("fp32", "bf16"))
    assert overlap(np.asarray(full.masks), np.asarray(reduced.masks)) > 0.95


def test_the_front_door_segments_and_is_a_function_again_and_again(film: Path) -> None:
    for _ in range(2):
        assert deixis.segment(str(film), "red", model=colours())[0].present


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"precision": "int4"}, "unknown precision 'int4'"),
        ({"expressions": []}, "at least one expression"),
        ({"expressions": ["red", "  "]}, "must hold words"),
        ({"model": "nonesuch"}, "unknown model 'nonesuch'"),
        ({"size": 1}, "size must lie between 8 and 4096"),
        ({"threshold": 1.0}, "threshold must lie between 0 and 1"),
    ],
)
def test_what_a_caller_gets_wrong_is_said_in_one_line(film: Path, arguments: dict, words: str) -> None:
    with pytest.raises(DeixisError, match=words) as caught:
        segment(film, **{"expressions": "red", "model": colours(), **arguments})
    assert "\n" not in str(caught.value)


def test_auto_takes_what_the_machine_has() -> None:
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert choose_device("auto").type == expected
    assert choose_precision("auto", torch.device("cuda"))
    assert choose_precision("auto", CPU) == cpu_has_bf16()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_said() -> None:
    with pytest.raises(DeixisError, match="no cuda device"):
        choose_device("cuda")


def test_the_model_size_follows_the_config_and_can_be_asked() -> None:
    config = ColoursConfig(short_side=224, long_side=448, multiple=32)
    assert model_size((480, 854), config) == (224, 384)
    assert model_size((480, 854), config, 448) == (448, 800)


# --- identity over windows -------------------------------------------------------------------------------------------


def blob(top: int, left: int, frames: int = 4, size: int = 16) -> np.ndarray:
    """(T, 32, 48) logits of one square."""
    logits = np.full((frames, 32, 48), -8, np.float32)
    logits[:, top : top + size, left : left + size] = 8
    return logits


def window(*objects: tuple[np.ndarray, float], presence: float = 4.0) -> Candidates:
    """Candidates of (logits, score), best first."""
    ordered = sorted(objects, key=lambda o: -o[1])
    scores = np.array([score for _, score in ordered])
    logits = np.stack([o for o, _ in ordered])
    return Candidates(logits, scores, np.repeat(scores[:, None], logits.shape[1], 1), presence, (32.0, 48.0))


def follow(windows: list[Candidates], linking: Linking | None = None, rule: Presence | None = None):
    builder = TrackBuilder([Expression("it")], (32, 48), linking or Linking())
    for i, candidates in enumerate(windows):
        builder.add([candidates], [f"{4 * i + t}" for t in range(4)], [float(4 * i + t) for t in range(4)], 4 * i)
    return builder.finish(rule or Presence(threshold=0.5))[0]


LEFT, RIGHT = blob(8, 2), blob(8, 28)


def test_the_target_stays_one_object_when_a_window_prefers_its_twin() -> None:
    sure, unsure = window((LEFT, 4.0), (RIGHT, 1.0)), window((LEFT, 1.0), (RIGHT, 1.6))
    track = follow([sure, sure, unsure, sure])
    assert all(mask[10, 5] and not mask[10, 35] for mask in track.masks)


def test_the_film_decides_which_object_it_is_even_against_its_first_window() -> None:
    first, rest = window((LEFT, 1.5), (RIGHT, 1.0)), window((LEFT, -3.0), (RIGHT, 3.0))
    track = follow([first, rest, rest])
    assert all(mask[10, 35] and not mask[10, 5] for mask in track.masks)


def test_an_object_may_leave_and_come_back() -> None:
    here, away = window((LEFT, 4.0)), window((RIGHT, -5.0), presence=-5.0)
    track = follow([here, here, away, away, here, here])
    assert (track.masks.areas() > 0).tolist() == [True] * 8 + [False] * 8 + [True] * 8
    assert track.scores[:8].min() > 0.9
    assert track.scores[8:16].max() < 0.1
    assert track.presence > 0.9


def test_a_moment_of_doubt_does_not_blank_the_track() -> None:
    here, doubt = window((LEFT, 4.0)), window((LEFT, -0.5), presence=-0.5)
    assert all(mask.any() for mask in follow([here, here, doubt, here, here]).masks)


def test_presence_below_the_threshold_empties_the_whole_track() -> None:
    maybe = window((LEFT, 0.4), presence=0.4)
    assert all(mask.any() for mask in follow([maybe, maybe]).masks)
    strict = follow([maybe, maybe], rule=Presence(threshold=0.7))
    assert not any(mask.any() for mask in strict.masks)
    assert strict.presence == pytest.approx(1 / (1 + np.exp(-0.4)), abs=1e-5)


def test_a_film_judged_present_has_a_mask_and_one_judged_absent_has_none() -> None:
    for presence in np.linspace(-3, 3, 13):
        for threshold in (0.2, 0.5, 0.8):
            maybe = window((LEFT, float(presence)), presence=float(presence))
            track = follow([maybe] * 3, rule=Presence(threshold=threshold))
            assert track.present == (track.presence >= threshold), (presence, threshold)


def test_presence_is_calibrated_by_temperature_and_shift() -> None:
    track = follow([window((LEFT, 2.0), presence=2.0)], rule=Presence(threshold=0.5, temperature=4.0, shift=0.25))
    assert track.presence == pytest.approx(1 / (1 + np.exp(-0.75)), abs=1e-5)


def test_an_object_seen_in_a_third_of_the_film_is_present() -> None:
    here, away = window((LEFT, 5.0), presence=5.0), window((LEFT, -6.0), presence=-6.0)
    track = follow([away, away, here, here, away, away])
    assert track.presence > 0.9
    assert (track.masks.areas() > 0).tolist() == [False] * 8 + [True] * 8 + [False] * 8


def test_shared_frames_link_two_objects_that_cross_at_the_seam() -> None:
    def moved(a: int, b: int) -> tuple[np.ndarray, np.ndarray]:
        one = np.concatenate([blob(8, a + 3 * t, 1) for t in range(4)])
        two = np.concatenate([blob(8, b - 3 * t, 1) for t in range(4)])
        return one, two

    builder = TrackBuilder([Expression("it")], (32, 48), Linking())
    one, two = moved(2, 28)
    builder.add([window((one, 3.0), (two, 0.0))], list("abcd"), [0.0, 1.0, 2.0, 3.0], 0)
    one, two = moved(2 + 6, 28 - 6)  # begins two frames before the end of the first window
    builder.add([window((one, 0.0), (two, 0.5))], list("cdef"), [2.0, 3.0, 4.0, 5.0], 2)
    (track,) = builder.finish(Presence(threshold=0.5))
    assert list(track.names) == list("abcdef")
    assert [int(np.flatnonzero(m.any(0))[0]) for m in track.masks] == [2, 5, 8, 11, 14, 17]


def test_an_object_that_its_query_loses_is_found_again_by_another() -> None:
    lost = np.concatenate([blob(8, 2, 2), blob(20, 40, 2, size=3)])  # the query jumps away after two frames
    other = np.concatenate([blob(0, 30, 2), blob(8, 2, 2)])  # while another comes to where it was
    track = follow([window((LEFT, 3.0)), window((lost, 3.0), (other, 0.0)), window((LEFT, 3.0))])
    assert all(mask[10, 5] and mask.sum() == 16 * 16 for mask in track.masks)


def test_a_fast_object_stays_its_query_when_nothing_else_is_where_it_was() -> None:
    fast = np.concatenate([blob(8, 16 * t, 1, size=8) for t in range(3)])
    track = follow([window((np.concatenate([fast, fast[-1:]]), 3.0), (blob(0, 40, 4, size=8), 0.0))])
    assert [int(np.flatnonzero(m.any(0))[0]) for m in track.masks] == [0, 16, 32, 32]


def test_the_best_path_is_the_best_of_all_paths() -> None:
    rng = np.random.default_rng(3)
    linking = Linking()
    for _ in range(20):
        film = [
            Window(
                0, (2, 4, 4), 0, np.sort(rng.normal(size=2))[::-1], np.zeros((2, 2)), 0.0, (4.0, 4.0),
                rng.uniform(0, 1, (1, 2, 2)), rng.uniform(0, 1, (2, 2)) if w else None,
            )
            for w in range(3)
        ]  # fmt: skip
        present, absent = np.log(rng.uniform(0.05, 1, (2, 3)))

        def worth(path: tuple[int, ...], film=film, present=present, absent=absent) -> float:
            total = 0.0
            for t, state in enumerate(path):
                window = film[t // 2]
                relative = np.log((1 + np.exp(-window.scores[0])) / (1 + np.exp(-window.scores)))
                total += absent[t // 2] / 2 if state < 0 else (present[t // 2] + relative[state]) / 2
                if t == 0:
                    continue
                before, seam = path[t - 1], t % 2 == 0
                if before >= 0 and state >= 0:
                    row = (window.links if seam else window.steps[0])[before]
                    costs = -linking.seam * np.log(np.clip(row / linking.same, linking.floor, 1))
                    cost = costs[state] - costs.min()
                    if not seam:
                        cost = min(cost, linking.hold) if before == state else cost + linking.switch
                    total -= cost
                elif before != state:
                    total -= (linking.leave if state < 0 else linking.enter) if seam else np.inf
            return total

        paths = [tuple(p) for p in np.stack(np.meshgrid(*[[-1, 0, 1]] * 6), -1).reshape(-1, 6).tolist()]
        found = tuple(np.concatenate(best_path(film, present, absent, linking)).tolist())
        assert worth(found) == pytest.approx(max(worth(path) for path in paths))


# --- from logits to masks --------------------------------------------------------------------------------------------


def test_select_takes_the_best_queries_and_crops_the_padding() -> None:
    masks = torch.full((1, 2, 5, 8, 8), -9.0)
    masks[0, :, 3, 2:4, 2:4] = 3.0
    scores = torch.tensor([-5.0, -1.0, 0.0, 2.0, 1.0]).expand(1, 2, 5)
    (found,) = select(Prediction(masks, scores), Linking(candidates=3), size=(26, 32), padded=(32, 32))
    assert found.scores.tolist() == [2.0, 1.0, 0.0]
    assert found.logits.shape == (3, 2, 7, 8)
    assert found.inside == (6.5, 8.0)
    assert (found.logits[0] > 0).sum() == 2 * 4
    assert found.presence == 2.0


def test_select_forgets_queries_that_are_far_behind() -> None:
    scores = torch.tensor([5.0, -4.0, -9.0]).expand(1, 2, 3)
    (found,) = select(Prediction(torch.zeros(1, 2, 3, 4, 4), scores), Linking(keep=0.05), (16, 16), (16, 16))
    assert len(found.scores) == 1


def test_a_dense_system_is_one_query_and_its_best_score_is_its_presence() -> None:
    masks = torch.full((2, 3, 1, 4, 4), 5.0)
    found = select(
        Prediction(masks, torch.tensor([[3.0], [-3.0]])[:, None].expand(2, 3, 1)), Linking(), (16, 16), (16, 16)
    )
    assert [f.presence for f in found] == [3.0, -3.0]


def test_logits_grow_to_source_size_as_bilinear_interpolation_does() -> None:
    logits = np.random.default_rng(0).normal(size=(9, 14)).astype(np.float32)
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(logits)[None, None], (40, 61), mode="bilinear", align_corners=False
    )[0, 0].numpy()
    clear = np.abs(wanted) > 1e-5  # away from the threshold, where rounding decides
    assert np.array_equal(to_source(logits, (9, 14), (40, 61))[clear], (wanted > 0)[clear])


def test_padding_that_cuts_through_a_cell_is_cropped_exactly() -> None:
    logits = np.full((10, 10), -1, np.float32)
    logits[:, :5] = 1  # the left half of 10 cells, of which 7.5 hold the picture: two thirds of it
    mask = to_source(logits, (10.0, 7.5), (60, 90))
    assert mask.shape == (60, 90)
    assert np.flatnonzero(mask.all(0))[-1] == pytest.approx(59, abs=1)
    assert encode_rle(mask)["size"] == [60, 90]


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("rough", "scale"), [(0, 1.0), (1, 1e-6), (3, 300.0), (9, 1.0)])
def test_logits_that_waited_on_disk_give_the_same_mask_to_the_pixel(rough: int, scale: float, soft: bool) -> None:
    """As those that did not, at any size: smooth masks and noise, tiny numbers and hundreds."""
    rng = np.random.default_rng(rough)
    y, x = np.mgrid[:18, :25]
    bump = 6 - np.hypot(y - 8, x - 12) + rough * rng.normal(size=(4, 18, 25))
    logits = (scale * bump).astype(np.float32)
    data = pack_logits(logits, soft)
    kept = unpack_logits(data)
    assert len(data) <= most_bytes(4, 1, 18 * 25)
    for size in ((18, 25), (97, 131), (480, 854)):
        a, b = (
            torch.nn.functional.interpolate(torch.from_numpy(v)[None], size, mode="bilinear", align_corners=False)
            for v in (logits, kept)
        )
        assert torch.equal(a > 0, b > 0)
        if soft:
            assert torch.equal(a[a > 0], b[b > 0])
        for inside in ((18, 25), (17.3, 22.5)):
            assert all(np.array_equal(to_source(f, inside, size), to_source(g, inside, size))
                       for f, g in zip(logits, kept, strict=True))  # fmt: skip


def test_answer_gives_one_set_of_candidates_per_expression(film: Path) -> None:
    system = Colours(replace(ColoursConfig(), window=4))
    clip = next(Video(film).windows(4, size=(72, 96)))
    read = lambda prediction, size, padded, _: select(prediction, Linking(), size, padded)  # noqa: E731
    found = predict_clip(system.eval(), clip, [Expression("red"), Expression("blue")], read, CPU)
    assert [f.presence for f in found] == [5.0, -5.0]
    assert found[0].logits.shape[1:] == (4, 36, 48)


def test_a_system_that_wants_squares_gets_multiples_of_its_patch(film: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class SquareConfig(ColoursConfig):
        square: bool = True

    config = SquareConfig()
    assert model_size((150, 100), config) == (72, 72)
    assert model_size((90, 300), config, 41) == (40, 40)
    with pytest.raises(DeixisError, match="size must lie"):
        model_size((90, 300), config, 3)
    (track,) = segment(film, "red", model=Colours(config))
    assert track.masks[0].shape == SHAPE
    assert overlap(np.asarray(track.masks), red(moving(23, colours=("red", "green")))) > 0.88


def test_a_film_whose_waiting_masks_do_not_fit_is_refused_in_one_line(film: Path, monkeypatch: Any) -> None:
    from shutil import disk_usage

    full = disk_usage("/")._replace(free=10)
    monkeypatch.setattr("deixis.waiting.shutil.disk_usage", lambda _: full)
    for usual in (USUAL, 0.0):  # foreseen before a frame is encoded; and found out after the first window
        monkeypatch.setattr("deixis.waiting.USUAL", usual)
        model = colours()
        with pytest.raises(DeixisError, match="masks wait there until the film has ended") as caught:
            segment(film, "red", model=model)
        assert "\n" not in str(caught.value)
        assert (model.encoded == 0) == (usual > 0)
    (track,) = segment(film, "red", model=colours(), selection="official")  # nothing waits
    assert track.present


def test_what_masks_take_while_they_wait_is_said_beforehand(
    film: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    from shutil import disk_usage

    most = most_bytes(Video(film).length or 0, 6, 18 * -(-72 * SHAPE[1] // SHAPE[0] // 4))
    for free, level in ((10 * most, "INFO"), (most // 2, "WARNING")):  # there is room for the most; for the usual
        caplog.clear()
        usage = disk_usage("/")._replace(free=free)
        monkeypatch.setattr("deixis.waiting.shutil.disk_usage", lambda _, usage=usage: usage)
        with caplog.at_level("INFO", "deixis.waiting"):
            segment(film, "red", model=colours())
        (record,) = [r for r in caplog.records if r.name == "deixis.waiting"]
        assert record.levelname == level
        assert "until the film has ended, at most" in record.getMessage()
