"""What ``predict`` writes is what the published rules say, to the pixel.

The rules of each benchmark stand here once more, in plain lines that use nothing of the package: the query with the
greatest mean probability, its raw logits, interpolated, compared with one half. A double of a system gives the stored
outputs of the authors' model, so the logits are real ones (hundreds, most beyond 8), whatever the film shows.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco
from scipy.ndimage import binary_dilation
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from deixis import systems
from deixis.benchmarks import open_benchmark, write_fixture
from deixis.benchmarks.frames import centred_window, film_index, read_frames
from deixis.benchmarks.results import marker_path
from deixis.benchmarks.samples import Benchmark, Sample
from deixis.metrics.evaluate import score_benchmark
from deixis.predict import predict
from deixis.training.clips import collate, shrink, training_clip
from deixis.training.recipes import find_recipe
from deixis.types import Expression, FeatureMaps, Prediction, SystemConfig
from deixis.video import resize

SHARED = Path(os.environ.get("DEIXIS_SHARED", Path(__file__).parents[2] / "shared")) / "fixtures"
DATA = Path(__file__).parent / "data"


def stored(name: str) -> tuple[Tensor, Tensor]:
    """(mask logits (T, Q, h, w), score logits (T, Q)) of the authors' model: all queries, or the four of the slice."""
    with np.load(DATA / f"reference_{name}.npz", allow_pickle=False) as file:
        queries = file["whole/queries"]
        masks, scores = file["whole/masks"], file["clip96/eval/pred_cls"]
        step, shape = json.loads(str(file["meta"]))["every"]["clip96/eval/pred_cls"]
        assert step == 1
    if (SHARED / f"{name}.npz").is_file():
        with np.load(SHARED / f"{name}.npz", allow_pickle=False) as file:
            masks, queries = file["clip96/eval/pred_masks"], slice(None)
    cells = masks[:, 0, :, ::3, ::4]  # fewer than the fixtures' pixels, as cells are, so that interpolation matters
    return torch.from_numpy(cells), torch.from_numpy(scores.reshape(shape)[:, 0, queries, 0])


class Stored(nn.Module):
    """Answers a frame with the stored outputs of a frame that its pixels and the expression choose, shifted, so that
    frames and expressions differ. It has no selection, and gives all queries in their order."""

    def __init__(self, name: str, window: int) -> None:
        super().__init__()
        self.masks, self.scores = stored(name)
        self.config = SystemConfig(window=window, short_side=48, long_side=72, multiple=1)  # fixtures: 32 by 48
        self.anchor = nn.Parameter(torch.zeros(1))

    def encode(self, frames: Tensor, padding: Tensor, wanted: Sequence[int] | None = None) -> FeatureMaps:
        if wanted is not None:
            frames, padding = frames[:, list(wanted)], padding[:, list(wanted)]
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.config.mean, self.config.std))
        pixels = ((frames[0] * std + mean) * 255).round().to(torch.uint8)
        keys = torch.tensor([key(frame.permute(1, 2, 0).numpy()) for frame in pixels])[None, :, None, None, None]
        return FeatureMaps((keys.float(),), (4,), padding, (frames.shape[-2], frames.shape[-1]))

    def decode(self, maps: FeatureMaps, expressions: Sequence[Expression], wanted: Any = None) -> Prediction:
        parts = [self.answer(maps.levels[0].flatten().long().tolist(), e.text) for e in expressions]
        return Prediction(torch.stack([m for m, _ in parts]), torch.stack([s for _, s in parts]))

    def answer(self, keys: list[int], text: str) -> tuple[Tensor, Tensor]:
        """(masks (T, Q, h, w), scores (T, Q)) of frames with these keys."""
        draws = [zlib.crc32(f"{k} {text}".encode()) for k in keys]
        masks = torch.stack([self.masks[d % len(self.masks)].roll(d % 7, -1) for d in draws])
        scores = torch.stack([self.scores[d % len(self.scores)].roll(d // 7 % 4, -1) * (1 + d % 5) for d in draws])
        return masks, scores


def key(pixels: np.ndarray) -> int:
    """A number for a (H, W, 3) uint8 frame."""
    return zlib.crc32(np.ascontiguousarray(pixels).tobytes()) % 100_000


# --- the rules once more, from shared/spec/soc.md section 7 and shared/spec/benchmarks.md -----------------------------


def resized(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.nn.functional.interpolate(logits[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def query(scores: Tensor) -> int:
    return int(scores.sigmoid().mean(0).argmax())


def whole_film(masks: Tensor, scores: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Ref-YouTube-VOS, MeViS: one query for the film."""
    return (resized(masks[:, query(scores)], size).sigmoid() > 0.5).numpy()


def davis(masks: list[Tensor], scores: list[Tensor], size: tuple[int, int], window: int) -> np.ndarray:
    """Objects' probabilities compete, each from the query that is chosen anew in every clip."""
    parts = [slice(i, i + window) for i in range(0, len(masks[0]), window)]
    films = zip(masks, scores, strict=True)
    soft = [torch.cat([resized(m[p, query(s[p])], size).sigmoid() for p in parts]) for m, s in films]
    planes = torch.stack([torch.full_like(soft[0], 0.1), *(torch.where(p < 0.5, 0, p) for p in soft)])
    return planes.argmax(0).numpy()


def single_frame(masks: Tensor, scores: Tensor, model: tuple[int, int], size: tuple[int, int]) -> list[Any]:
    """A2D, JHMDB: every query, thresholded at the size that the model got, then the nearest pixel."""
    binary = (resized(masks, model).sigmoid() > 0.5).float()[:, None]
    nearest = torch.nn.functional.interpolate(binary, size, mode="nearest")[:, 0].bool().numpy()
    return list(zip(nearest, scores.sigmoid().tolist(), strict=True))


# --- the scores once more, from shared/spec/benchmarks.md -------------------------------------------------------------


def region(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum() if (a | b).any() else 1.0


def boundary(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    lines = (mask != padded[:-1, 1:]) | (mask != padded[1:, :-1]) | (mask != padded[1:, 1:])
    lines[-1, :-1], lines[:-1, -1] = mask[-1, :-1] != mask[-1, 1:], mask[:-1, -1] != mask[1:, -1]
    lines[-1, -1] = False
    return lines


def contour(a: np.ndarray, b: np.ndarray) -> float:
    reach = int(np.ceil(0.008 * np.hypot(*a.shape)))
    disk = np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1]) <= reach
    a, b = boundary(a), boundary(b)
    if not a.any() or not b.any():
        return float(a.any() == b.any())
    precision, recall = (a & binary_dilation(b, disk)).sum() / a.sum(), (b & binary_dilation(a, disk)).sum() / b.sum()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def expression_scores(films: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Of (answer, truth) (T, H, W) an expression: means over its frames, then over expressions (empty on both: 1)."""
    found = [[(region(a, b), contour(a, b)) for a, b in zip(*film, strict=True)] for film in films]
    j, f = np.mean([np.mean(frames, axis=0) for frames in found], axis=0)
    return {"J": j, "F": f, "J&F": (j + f) / 2}


def davis_scores(films: list[tuple[np.ndarray, list[np.ndarray], np.ndarray]]) -> dict[str, float]:
    """J and F of (answers (T, H, W), objects, void) an annotator and video, each answer to the object it fits best."""
    found = []
    for answers, objects, void in films:
        table = np.array([[np.mean([(region((x == i + 1) & ~v, o & ~v), contour((x == i + 1) & ~v, o & ~v))
                                    for x, o, v in zip(answers, own, void, strict=True)], axis=0)
                           for own in objects] for i in range(len(objects))])  # fmt: skip
        found += list(table[linear_sum_assignment(table.mean(-1), maximize=True)])
    j, f = np.mean(found, axis=0)
    return {"J": j, "F": f, "J&F": (j + f) / 2}


def single_frame_scores(frames: list[tuple[np.ndarray, list[Any]]]) -> dict[str, float]:
    """Of (true mask, [(mask, score)]) a frame: the best answer's IoU in three ways, and COCO's mAP of all answers."""
    best = [(truth, max(answers, key=lambda a: a[1])[0]) for truth, answers in frames]
    both, either = (np.array([op(a, b).sum() for a, b in best]) for op in (np.logical_and, np.logical_or))
    scores = {"mIoU": np.mean((both + 1e-6) / (either + 1e-6)), "oIoU": both.sum() / either.sum()}
    scores |= {f"P@{k}": np.mean(both > k * either) for k in (0.5, 0.6, 0.7, 0.8, 0.9)}
    precisions = []
    for threshold in 0.5 + 0.05 * np.arange(10):
        hits: list[tuple[float, bool]] = []
        for truth, answers in frames:
            free = True
            for mask, score in sorted(answers, key=lambda a: -a[1]):
                hit = free and (mask & truth).sum() >= (threshold - 1e-9) * (mask | truth).sum() > 0
                hits, free = [*hits, (score, hit)], free and not hit
        true = np.cumsum([hit for _, hit in sorted(hits, key=lambda h: -h[0])])
        recall, precision = true / len(frames), true / np.arange(1, len(true) + 1)
        precisions += [max(precision[recall >= r - 1e-12], default=0.0) for r in np.linspace(0, 1, 101)]
    return scores | {"mAP": np.mean(precisions)}


def same_summary(found: Any, expected: dict[str, float]) -> None:
    for measure, value in expected.items():
        assert found[measure] == pytest.approx(value, abs=1e-6), measure


# --- predict against the rules ----------------------------------------------------------------------------------------

SOURCE, MODEL = (48, 32), (72, 48)  # pixels: of the fixtures' frames, and as the double gets them


@pytest.fixture(params=[("soc", 3), ("socpp", 3), ("soc", 36)], ids=["soc", "soc++", "soc, one window"])
def double(request: pytest.FixtureRequest) -> Stored:
    name, window = request.param
    return Stored(name, window)


def predicted(name: str, double: Stored, folder: Path, split: str | None = None) -> Benchmark:
    write_fixture(name, folder / "data")
    benchmark = open_benchmark(name, folder / "data", split)
    predict(benchmark, folder / "results", double, device="cpu")
    return benchmark


def outputs(double: Stored, sample: Sample, indices: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
    """What the double gives for frames of a sample's film (default: all)."""
    frames = read_frames(sample.video, range(len(sample.video.names)) if indices is None else indices)
    assert frames.shape[1:3] == SOURCE
    return double.answer([key(resize(frame, MODEL)) for frame in frames], sample.text)


def png(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def marker(folder: Path, sample: Sample) -> dict[str, Any]:
    return json.loads(marker_path(folder / "results", sample).read_text())


@pytest.mark.parametrize(
    ("name", "split", "top"), [("ref-youtube-vos", "train", "Annotations/"), ("mevis", "valid_u", "")]
)
def test_one_query_for_the_film_and_its_raw_logits(
    name: str, split: str, top: str, double: Stored, tmp_path: Path
) -> None:
    benchmark = predicted(name, double, tmp_path, split)
    differ, mixed, films = 0, 0, []
    assert benchmark.truth is not None
    for sample in benchmark.samples:
        masks, scores = outputs(double, sample)
        expected = whole_film(masks, scores, SOURCE)
        for frame, wanted in zip(sample.video.names, expected, strict=True):
            found = png(tmp_path / "results" / f"{top}{sample.video.id}" / sample.id / f"{frame}.png")
            assert np.array_equal(found, wanted * np.uint8(255))
        assert marker(tmp_path, sample)["scores"] == pytest.approx(
            scores[:, query(scores)].sigmoid().tolist(), abs=1e-6
        )
        differ += len({query(scores[:3]), query(scores[3:])}) > 1
        mixed += expected.any() and not expected.all()
        assert sample.objects is not None
        truths = [benchmark.truth(sample.video, index).union(sample.objects) for index in range(len(expected))]
        films.append((expected, np.stack(truths)))
    assert mixed > 1
    assert differ  # else a choice in each window would have passed too
    summary = score_benchmark(name, tmp_path / "data", tmp_path / "results", split).summary
    same_summary(summary, expression_scores(films))
    assert 0 < summary["J&F"] < 1  # type: ignore[operator]


def test_on_ref_davis17_objects_compete_and_every_window_chooses_anew(double: Stored, tmp_path: Path) -> None:
    benchmark, several, films = predicted("ref-davis17", double, tmp_path), 0, []
    assert benchmark.truth is not None
    for samples in benchmark.by_video().values():
        for annotator in range(4):
            own = [s for s in samples if int(s.id) % 4 == annotator]
            masks, scores = zip(*(outputs(double, s) for s in own), strict=True)
            expected = davis(list(masks), list(scores), SOURCE, double.config.window)
            for index, wanted in enumerate(expected):
                path = tmp_path / "results" / f"anno_{annotator}" / samples[0].video.id / f"{index:05d}.png"
                assert np.array_equal(png(path), wanted)
            several += len(np.unique(expected)) == len(own) + 1
            truth = [benchmark.truth(samples[0].video, index) for index in range(len(expected))]
            blank = np.zeros(expected.shape[1:], bool)
            objects = [np.stack([t.masks.get(str(i), blank) for t in truth]) for i in range(1, len(own) + 1)]
            films.append((expected, objects, np.stack([blank if t.void is None else t.void for t in truth])))
    assert several
    summary = score_benchmark("ref-davis17", tmp_path / "data", tmp_path / "results").summary
    same_summary(summary, davis_scores(films))
    assert 0 < summary["J&F"] < 1  # type: ignore[operator]


@pytest.mark.parametrize("name", ["a2d-sentences", "jhmdb-sentences", "refcoco"])
def test_in_single_frames_every_query_is_an_answer(name: str, double: Stored, tmp_path: Path) -> None:
    benchmark = predicted(name, double, tmp_path)
    given: dict[str, list[Any]] = {}
    for answer in json.loads((tmp_path / "results" / "predictions.json").read_text()):
        given.setdefault(answer["image_id"], []).append(answer)
    assert benchmark.truth is not None
    frames = []
    for sample in benchmark.samples:
        assert sample.scored is not None
        assert sample.objects is not None
        masks, scores = outputs(double, sample, [film_index(sample, sample.scored[0])])
        expected = single_frame(masks[0], scores[0], MODEL, SOURCE)
        assert len(given[sample.id]) == len(expected) == len(double.scores[0])
        for answer, (mask, score) in zip(given[sample.id], expected, strict=True):
            assert np.array_equal(coco.decode(answer["segmentation"]).astype(bool), mask)
            assert answer["score"] == pytest.approx(score, abs=1e-6)
        frames.append((benchmark.truth(sample.video, sample.scored[0]).union(sample.objects), expected))
    summary = score_benchmark(name, tmp_path / "data", tmp_path / "results", benchmark.split).summary
    same_summary(summary, single_frame_scores(frames))
    assert 0 < summary["mIoU"] < 1  # type: ignore[operator]


def test_the_stored_logits_are_those_that_a_byte_of_8_would_spoil(double: Stored) -> None:
    assert float((double.masks.abs() > 8).float().mean()) > 0.4


@pytest.mark.parametrize("name", ["soc_a2d", "soc_plus_plus_a2d"])
def test_a2d_is_answered_by_the_network_that_was_trained(name: str, tmp_path: Path) -> None:
    """One frame after the backbone, all queries, the recipe's window and size: the forward pass of training."""
    write_fixture("a2d-sentences", tmp_path / "data")
    small = systems.PRESETS["soc_debug" if name == "soc_a2d" else "soc_plus_plus_debug"]
    torch.manual_seed(0)
    data = {"a2d-sentences": tmp_path / "data", "kinetics": tmp_path / "none"}
    recipe = find_recipe(name)(data, overrides={"data.flip": "0"})
    config: Any = recipe.config
    assert (config.window, config.short_side, config.long_side) == (8, 320, 576)
    model: Any = small()
    model.config = replace(model.config, window=config.window, short_side=48, long_side=96)
    model.eval()
    benchmark = open_benchmark("a2d-sentences", tmp_path / "data", "test")
    predict(benchmark, tmp_path / "results", model, device="cpu")
    given: dict[str, list[Any]] = {}
    for answer in json.loads((tmp_path / "results" / "predictions.json").read_text()):
        given.setdefault(answer["image_id"], []).append(answer)
    for sample in benchmark.samples:
        assert sample.scored is not None
        clip = training_clip(benchmark, sample, centred_window(film_index(sample, sample.scored[0]), 8))
        batch = collate(model.config, [shrink(clip, model.config)])
        assert batch.wanted == (4,)
        model.config, kept = replace(model.config, kept_queries=None), model.config
        with torch.inference_mode():
            forward = model(batch)
        model.config = kept
        assert forward.masks.shape[1:3] == (1, model.config.queries)
        expected = single_frame(forward.masks[0, 0], forward.scores[0, 0], batch.sizes[0], SOURCE)
        assert len(given[sample.id]) == len(expected)
        for answer, (mask, score) in zip(given[sample.id], expected, strict=True):
            assert np.array_equal(coco.decode(answer["segmentation"]).astype(bool), mask)
            assert answer["score"] == pytest.approx(score, abs=1e-6)
