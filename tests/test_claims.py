"""The studies of the papers' claims: they run, stop, go on as if they had not stopped, and their verdicts follow the
margin."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    import claims as module

    return module


def small(claims: Any, name: str) -> Any:
    """A study with few films to be tested on."""
    return replace(claims.STUDIES[name], test_films=20)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "state.pt", weights_only=True)["model"]


def test_a_study_that_was_stopped_goes_on_to_the_same_weights(claims: Any, tmp_path: Path) -> None:
    study = small(claims, "soc_plus_plus_proxies")
    at_once, in_parts = (claims.grid.Place(out=tmp_path / name) for name in ("once", "parts"))
    claims.grid.run(study, [0], at_once, steps=2)
    claims.grid.run(study, [0], in_parts, steps=1)
    found = claims.grid.run(study, [0], in_parts, steps=2)
    assert [one["step"] for one in found] == [2] * len(study.arms)
    for arm in ("proxies", "words_at_the_cells"):
        a, b = (weights(place.out / study.name / f"{arm}-0") for place in (at_once, in_parts))
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_what_is_done_is_not_done_again(claims: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study, place = small(claims, "conv_clip_words"), claims.grid.Place(out=tmp_path)
    claims.grid.run(study, [0], place, steps=1)
    capsys.readouterr()
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*-0/*")}
    claims.grid.run(study, [0], place, steps=1)
    assert capsys.readouterr().out == ""
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*-0/*")}
    for path in tmp_path.rglob("state.pt"):
        path.unlink()
    assert len(claims.grid.run(study, [0], place)) == 2  # a study that has ended needs no states any more
    claims.verdicts.table(study, tmp_path)
    assert "words everywhere over words as the start" in capsys.readouterr().out


STUDIES = (
    "soc_cluster", "soc_contrast", "soc_plus_plus_frames", "soc_plus_plus_proxies", "vlp_rvos_prompts",
    "vlp_rvos_history", "vlp_rvos_cubes_led", "conv_clip_words", "conv_clip_words_hard", "conv_clip_queries",
    "vlp_rvos_aligned", "conv_clip_aligned", "motion_soc", "motion_soc_plus_plus", "motion_vlp_rvos", "motion_slvp",
)  # fmt: skip


def test_every_study_is_tested_below(claims: Any) -> None:
    assert set(STUDIES) == set(claims.STUDIES)


@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_answers_and_what_it_trains_gets_a_gradient(
    claims: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, vlp = claims.STUDIES[name], claims.vlp_rvos
    monkeypatch.setattr(vlp, "tower_of", lambda path, seed: vlp.of_arm().tower.state_dict())  # its training is long
    for arm in study.arms:
        model = study.arms[arm]()
        model.prepare(tmp_path, 0)
        films = study.draw(6, claims.grid.generator(0))
        loss = model.loss(films)
        loss.backward()
        assert torch.isfinite(loss), arm
        assert 0 <= float(model.right(films).mean()) <= 1, arm
        unused = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
        assert not {n for n in unused if not n.startswith(UNUSED)}, arm


# The token for a film's first clip, which no second clip needs; the gates that a control of the proxies leaves aside;
# the heads of conv-CLIP for masks and embeddings, where only scores are read.
# In the studies of motion: the levels from stride 16 on, and what is read beside the masks.
UNUSED = (
    "history.nothing", "proxies", "proxy_gate.", "text_gate.", "heads.kernel.", "heads.embedding.",
    "vision.layers.2.", "vision.layers.3.", "vision.merge.1.", "vision.merge.2.",
    *(f"project.{part}.{level}." for part in ("conv", "norm") for level in (1, 2, 3)), "whole.mask_head.score.",
)  # fmt: skip


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.021, 0.3, "shown"), (-0.1, 0.019, "refuted"), (0.0, 0.04, "not shown"), (0.02, 0.04, "not shown")],
)
def test_a_verdict_follows_the_margin_that_was_written_down(
    claims: Any, low: float, high: float, expected: str
) -> None:
    assert claims.verdicts.verdict(low, high, 0.02) == expected


def test_a_claim_is_shown_only_against_every_control(claims: Any) -> None:
    assert claims.verdicts.verdict_of_all(["shown", "shown"]) == "shown"
    assert claims.verdicts.verdict_of_all(["shown", "not shown"]) == "not shown"
    assert claims.verdicts.verdict_of_all(["shown", "refuted", "not shown"]) == "refuted"


def test_gains_are_paired_by_seed_and_film(claims: Any) -> None:
    """Both arms fail on the same films, and the one on two of ten more: the interval holds no spread of the films."""
    hard = np.tile([1.0] * 8 + [0.0] * 2, 50)
    weak = np.tile([1.0] * 6 + [0.0] * 4, 50)
    found = [
        {"arm": arm, "seed": seed, "right": {"": right.tolist()}}
        for arm, right in (("part", hard), ("without", weak))
        for seed in range(3)
    ]
    comparison = claims.grid.Comparison(claim="", arm="part", controls=("without",))
    ((control, gain, low, high, each),) = claims.verdicts.gains(found, comparison)
    assert control == "without"
    assert gain == pytest.approx(0.2)
    assert 0.15 < low < 0.2 < high < 0.25
    assert each == pytest.approx([0.2] * 3)


def test_a_curve_is_flat_when_the_last_block_is_no_better(claims: Any) -> None:
    def curve(*values: float) -> list[list[float]]:
        return [[50 * (i + 1), value] for i, value in enumerate(values)]

    flat = claims.grid.flat
    assert flat([curve(0.5, 0.6, 0.7, 0.8, 0.6, 0.6, 0.6, 0.6)])
    assert not flat([curve(0.5, 0.5, 0.5, 0.5, 0.6, 0.6, 0.6, 0.6)])
    assert not flat([curve(0.5, 0.5, 0.5, 0.5)])  # one block alone says nothing


def test_twins_are_alike_in_every_frame_and_part_in_opposite_directions(claims: Any) -> None:
    from claim_studies.twins import LEFT, SIDE, twin_films

    films = twin_films(50, claims.grid.generator(0))
    columns = films["at"] % SIDE
    steps = (columns[:, 1:] - columns[:, :-1]) % SIDE  # (B, T - 1, K)
    to_left = (films["goes"] == LEFT)[:, None]
    assert torch.equal(steps == SIDE - 1, to_left.expand_as(steps))
    assert torch.equal(films["goes"].gather(1, films["truth"][:, None])[:, 0], films["asked"])


def test_motion_is_in_the_order_of_frames_alone(claims: Any) -> None:
    """Pixels show the twins where the film says; in a random order both ways look the same; backwards they swap."""
    from claim_studies.motion import PATCH, SIDE, backwards, motion_films
    from claim_studies.twins import LEFT

    films = motion_films(50, claims.grid.generator(0))
    bright = torch.nn.functional.avg_pool2d(films["pixels"].mean(2), PATCH).flatten(2)
    assert torch.equal(bright.topk(2).indices.sort(-1).values, films["at"].sort(-1).values)
    steps = films["at"].diff(dim=1) % SIDE  # (B, T - 1, K)
    to_left = (films["goes"] == LEFT)[:, None].expand_as(steps)
    assert torch.equal(steps == SIDE - 1, to_left)
    assert torch.equal(films["goes"].gather(1, films["truth"][:, None])[:, 0], films["asked"])
    back = backwards(50, claims.grid.generator(0))
    assert torch.equal(back["at"].flip(1), films["at"])
    assert torch.equal(back["truth"], films["truth"])


def test_the_control_of_motion_gets_the_frames_in_a_random_order(claims: Any) -> None:
    """Its answer to a film and to the film in another order is the same where ``order`` undoes the change."""
    from claim_studies.motion import ORDERED, SHUFFLED, motion_films, reordered

    films, study = motion_films(4, claims.grid.generator(0)), claims.STUDIES["motion_slvp"]
    inverse = films["order"].argsort(1)
    for name, same in ((SHUFFLED, True), (ORDERED, False)):
        torch.manual_seed(0)
        arm = study.arms[name]().eval()
        with torch.no_grad():
            undone = arm(reordered(films, films["order"]) | {"order": inverse})
            straight = arm(films | {"order": torch.arange(4).expand(4, -1)})
        assert torch.allclose(undone, straight, atol=1e-6) == same


def test_events_are_the_same_in_a_film_played_backwards(claims: Any) -> None:
    """Each event holds for a set of frames, whatever their order: hidden in four, or still in four, of ten."""
    from claim_studies.tracks import event_films

    films = event_films(200, claims.grid.generator(0))
    hidden = films["there"].eq(0).sum(1)  # (B, K)
    assert set(hidden.flatten().tolist()) == {1, 4}
    asked = films["asked"] == 2
    own = hidden.gather(1, films["truth"][:, None])[:, 0]
    assert (own[asked] == 4).all()


def test_a_run_notes_commit_curve_and_trained_parameters(claims: Any, tmp_path: Path) -> None:
    study = small(claims, "conv_clip_words")
    claims.grid.run(study, [0], claims.grid.Place(out=tmp_path), steps=1)
    facts = json.loads(next((tmp_path / study.name).glob("*/scores.json")).read_text())
    assert facts["trained"] > 1000
    assert facts["curve"][0][0] == 1
    assert len(facts["right"]["words of another film"]) == study.test_films
    assert facts["commit"]


# --- whole systems ----------------------------------------------------------------------------------------------------


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    import whole_systems as module

    return module


def test_what_tells_two_objects_apart_is_seen_in_the_first_half_of_a_marked_film_only(whole: Any) -> None:
    from deixis.synthetic.shapes import PAINTS
    from deixis.training.generated import WorldData

    data = WorldData(size=(64, 96), frames=8, areas=(0.04, 0.12), objects=(2, 2))
    for number in range(5):
        film = whole.marked_film(data, "train", number)
        assert len({s.text for s in film.sentences}) == 2
        for sentence in film.sentences:
            (k,) = sentence.objects
            paint = np.array(PAINTS[sentence.text.split()[1]])
            near = (np.abs(film.frames.astype(int) - paint).max(-1) < 40)[:, None] & film.masks  # (T, N, H, W)
            shares = near.sum((2, 3)) / film.masks.sum((2, 3))
            assert shares[:4, k].min() > 0.1  # its mark
            assert shares[4:].max() < 0.05  # gone
            assert np.delete(shares[:4], k, axis=1).max() < 0.05  # the other's is of another colour
        assert film.masks.sum((2, 3)).min() >= 60  # both are in sight all the time


def test_a_curve_of_blocks_is_flat_when_no_arm_rises(whole: Any) -> None:
    assert whole.is_flat([[0.3, 0.309], [0.4, 0.2]])
    assert not whole.is_flat([[0.3, 0.309], [0.4, 0.411]])
    assert not whole.is_flat([[0.3]])


@pytest.mark.slow
def test_whole_systems_are_trained_in_blocks_then_predicted_and_scored_once(
    whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = replace(whole.STUDIES["soc_contrast"], tower="", changes={"data.films": "4", "model.layers": "1"})
    monkeypatch.setattr(whole, "STUDIES", {"small": study})
    monkeypatch.setattr(whole, "TEST_FILMS", 2)
    monkeypatch.setattr(whole, "VALIDATION_FILMS", 1)
    call = [str(tmp_path), "--only", "small", "--seeds", "0", "1", "--block", "1", "--most", "2", "--batch", "1"]
    monkeypatch.setattr("sys.argv", ["whole_systems.py", *call])
    whole.main()
    first = capsys.readouterr().out
    assert "contrast over no contrast" in first
    facts = json.loads((tmp_path / "small/contrast-1/scores.json").read_text())
    assert len(facts["jf"]) == 2
    assert min(facts["jf"]) >= 0
    assert max(facts["jf"]) <= 1
    assert json.loads((tmp_path / "small/ended.json").read_text())["steps"] <= 2
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    whole.main()
    assert capsys.readouterr().out.split("###")[1] == first.split("###")[1]
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr("sys.argv", ["whole_systems.py", *call, "--plots", str(tmp_path / "plots")])
    whole.main()
    assert (tmp_path / "plots/claims_whole_small.png").stat().st_size < 20_000
