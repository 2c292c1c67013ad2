"""Training: what is resumed, shared between processes, interrupted or broken ends as promised."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from helpers.training_toy import ToyConfig, losses, sample, toy
from safetensors.torch import load_file
from typer.testing import CliRunner

from deixis.cli import app
from deixis.config import apply_overrides
from deixis.training.checkpoint import load_checkpoint, read_facts, save_checkpoint
from deixis.training.feed import micro_batches, sample_indices
from deixis.training.loop import NotFiniteError, train
from deixis.training.optimizer import WeightAverage, parameter_groups, schedule_factor
from deixis.training.recipes import RECIPES, find_recipe
from deixis.training.record import read_metrics
from deixis.training.run import TrainConfig
from deixis.types import DeixisError

TOY = Path(__file__).parent / "helpers" / "training_toy.py"


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run_toy(*arguments: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), str(TOY), *arguments]
    return subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )


def assert_same_state(left: Path, right: Path) -> None:
    (a, facts_a), (b, facts_b) = load_checkpoint(left), load_checkpoint(right)
    assert facts_a["step"] == facts_b["step"]
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert different == []


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits_with_dropout_average_and_accumulation(tmp_path):
    train(toy(), tmp_path / "uncut", device="cpu")
    killed = run_toy(str(tmp_path / "cut"), "kill=4", "train.checkpoint_minutes=0", "train.threads=1")
    assert killed.returncode == -signal.SIGKILL
    # The kill came after step 4 and before its checkpoint: three steps are safe.
    assert read_facts(tmp_path / "cut" / "last.safetensors")["step"] == 3

    train(toy(checkpoint_minutes=0), tmp_path / "cut", device="cpu", resume=True)

    assert_same_state(tmp_path / "uncut" / "last.safetensors", tmp_path / "cut" / "last.safetensors")
    tensors, _ = load_checkpoint(tmp_path / "cut" / "last.safetensors")
    assert {name.split("/")[0] for name in tensors} == {"model", "ema", "adam.step", "adam.exp_avg", "adam.exp_avg_sq"}


@pytest.mark.slow
def test_two_processes_equal_one_with_the_same_global_batch(tmp_path):
    settings = ("dropout=0", "train.steps=5", "train.threads=1")
    done = run_toy(str(tmp_path / "two"), *settings, "train.batch=3", "train.global_batch=12", processes=2)
    assert done.returncode == 0, done.stderr
    train(toy(config=ToyConfig(dropout=0), steps=5, batch=6, global_batch=12), tmp_path / "one", device="cpu")

    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-5
    assert read_facts(tmp_path / "two" / "last.safetensors")["processes"] == 2
    totals = [read_metrics(tmp_path / name / "metrics.jsonl")[-1]["total"] for name in ("one", "two")]
    assert totals[0] == pytest.approx(totals[1], abs=1e-5)


def test_the_number_of_workers_changes_nothing(tmp_path):
    for workers in (0, 2):
        train(toy(steps=3, workers=workers), tmp_path / str(workers), device="cpu")
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("0", "2"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_no_worker_outlives_its_run_however_it_ends(tmp_path):
    def fail(progress):
        raise RuntimeError("full screen")

    train(toy(steps=3, workers=1), tmp_path / "finished", device="cpu")
    assert multiprocessing.active_children() == []
    with pytest.raises(RuntimeError, match="full screen"):
        train(toy(steps=1000, workers=1), tmp_path / "failed", device="cpu", report=fail)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint_that_resumes(tmp_path, name):
    def send(progress):
        if progress.step == 2:
            os.kill(os.getpid(), getattr(signal, name))

    before = signal.getsignal(getattr(signal, name))
    outcome = train(toy(), tmp_path / "cut", device="cpu", report=send)
    assert (outcome.stopped, outcome.step) == (name, 3)
    assert signal.getsignal(getattr(signal, name)) is before
    assert outcome.model.exists()

    assert train(toy(), tmp_path / "cut", device="cpu", resume=True).stopped == "finished"
    train(toy(), tmp_path / "uncut", device="cpu")
    assert_same_state(tmp_path / "uncut" / "last.safetensors", tmp_path / "cut" / "last.safetensors")


def test_the_time_limit_ends_the_run_in_order_and_leaves_the_schedule(tmp_path):
    limited = toy(steps=10_000_000, time_limit_minutes=0.2 / 60)
    outcome = train(limited, tmp_path, device="cpu")
    assert outcome.stopped == "time limit"
    assert 0 < outcome.step < 10_000_000
    assert outcome.model.exists()
    assert limited.train.learning_rate(outcome.step) == pytest.approx(limited.train.lr, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_names_the_part_and_keeps_the_checkpoint(tmp_path, value):
    def poisoned(system, batch):
        parts = losses(system, batch)
        return parts | {"absolute": parts["absolute"] * value} if batch[0, 0] == poison else parts

    # The first number of the fourth step's first sample marks the batch (8 samples a step).
    poison = next(micro_batches(sample, torch_stack, start=3, steps=4, **FEED))[0, 0].item()
    with pytest.raises(NotFiniteError, match=r"step 4.*'absolute'.*step 3") as caught:
        train(replace(toy(checkpoint_minutes=0), losses=poisoned), tmp_path, device="cpu")
    assert "square" not in str(caught.value)
    tensors, facts = load_checkpoint(tmp_path / "last.safetensors")
    assert facts["step"] == 3
    assert all(t.isfinite().all() for t in tensors.values())


FEED = {"rank": 0, "ranks": 1, "accumulate": 2, "batch": 4, "seed": 0, "workers": 0}


def torch_stack(samples):
    return torch.stack([torch.cat(s) for s in samples])


def test_a_gradient_that_is_not_finite_is_named_by_its_parameter(tmp_path):
    def steep(system, batch):
        # sqrt has an infinite slope at 0; the loss itself is finite.
        return losses(system, batch) | {"root": (system.last.bias * 0).sqrt().sum()}

    with pytest.raises(NotFiniteError, match=r"gradient of last\.bias; stopped, no checkpoint"):
        train(replace(toy(), losses=steep), tmp_path, device="cpu")


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path):
    train(toy(steps=1), tmp_path, device="cpu")
    with pytest.raises(DeixisError, match="already holds a run at step 1; go on with --resume"):
        train(toy(steps=1), tmp_path, device="cpu")


def test_a_run_does_not_resume_with_another_model(tmp_path):
    train(toy(steps=1), tmp_path, device="cpu")
    with pytest.raises(DeixisError, match=r"model\.width \(8 -> 16\)"):
        train(toy(config=ToyConfig(width=16), steps=1), tmp_path, device="cpu", resume=True)


def test_metrics_have_a_line_every_n_steps_and_a_resumed_run_repeats_none(tmp_path):
    train(toy(log_every=2, steps=4), tmp_path, device="cpu")
    with open(tmp_path / "metrics.jsonl", "a") as file:  # lines of steps that a crash took, the last one cut off
        file.write(json.dumps({"kind": "train", "step": 5}) + '\n{"kind": "tr')
    train(toy(log_every=2, steps=8), tmp_path, device="cpu", resume=True)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert lines[0].keys() == {
        "kind", "step", "losses", "total", "lr", "grad_norm", "samples_per_second", "waiting", "seconds"
    }  # fmt: skip
    each = []
    train(toy(steps=4), tmp_path / "reported", device="cpu", report=lambda progress: each.append(progress.losses))
    assert lines[1]["losses"] == pytest.approx({name: (each[2][name] + each[3][name]) / 2 for name in each[0]})
    assert lines[0]["total"] == pytest.approx(sum(lines[0]["losses"].values()))


@pytest.mark.curves
def test_the_best_checkpoint_is_that_of_the_best_validation_and_curves_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    answers = iter([0.3, 0.7, 0.5])
    modes = []

    def validate(system):
        modes.append((system.training, torch.is_grad_enabled()))
        return {"score": next(answers)}

    outcome = train(toy(validate=validate, validate_every=2), tmp_path, device="cpu")
    assert outcome.best_score == 0.7
    assert read_facts(tmp_path / "best.safetensors")["step"] == 4
    assert modes == [(False, False)] * 3
    scored = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line["kind"] == "validate"]
    assert [(line["step"], line["scores"]["score"]) for line in scored] == [(2, 0.3), (4, 0.7), (6, 0.5)]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_exported_model_and_the_validated_one_have_the_averaged_weights(tmp_path):
    seen = []
    validate = lambda system: seen.append(system.last.weight.clone()) or {"score": 1.0}  # noqa: E731
    train(toy(validate=validate, validate_every=6), tmp_path, device="cpu")
    tensors, _ = load_checkpoint(tmp_path / "last.safetensors")
    exported = load_file(tmp_path / "model.safetensors")
    assert torch.equal(exported["last.weight"], tensors["ema/last.weight"])
    assert torch.equal(seen[0], tensors["ema/last.weight"])
    assert not torch.equal(tensors["model/last.weight"], tensors["ema/last.weight"])


@pytest.mark.slow
def test_training_makes_the_loss_smaller_also_in_bf16(tmp_path):
    for precision in ("fp32", "bf16"):
        run = toy(config=ToyConfig(dropout=0), steps=60, global_batch=16, batch=16, precision=precision, log_every=1)
        train(run, tmp_path / precision, device="cpu")
        totals = [line["total"] for line in read_metrics(tmp_path / precision / "metrics.jsonl")]
        assert sum(totals[-5:]) < 0.5 * sum(totals[:5])


def test_parameters_left_out_of_the_groups_stay_as_they_are(tmp_path):
    frozen = replace(toy(ema=0), groups=lambda system: parameter_groups(system, {"first.": 0}))
    torch.manual_seed(0)
    start = {}
    train(replace(frozen, system=lambda: start.setdefault("toy", frozen.system())), tmp_path / "a", device="cpu")
    assert not start["toy"].first.weight.requires_grad
    one = load_file(tmp_path / "a" / "model.safetensors")
    train(replace(frozen, train=replace(frozen.train, steps=1)), tmp_path / "b", device="cpu")
    two = load_file(tmp_path / "b" / "model.safetensors")
    assert torch.equal(one["first.weight"], two["first.weight"])
    assert not torch.equal(one["last.weight"], two["last.weight"])


def test_the_clipped_gradient_and_unclipped_differ_and_the_norm_reported_is_the_unclipped(tmp_path):
    for clip in (0.0, 1e-3):
        train(toy(steps=1, clip_norm=clip, log_every=1), tmp_path / str(clip), device="cpu")
    lines = [read_metrics(tmp_path / str(clip) / "metrics.jsonl")[0] for clip in (0.0, 1e-3)]
    assert lines[0]["grad_norm"] == lines[1]["grad_norm"] > 1e-2
    free, clipped = (load_checkpoint(tmp_path / str(clip) / "last.safetensors")[0] for clip in (0.0, 1e-3))
    ratio = clipped["adam.exp_avg/last.weight"].norm() / free["adam.exp_avg/last.weight"].norm()
    assert ratio.item() == pytest.approx(1e-3 / lines[0]["grad_norm"], rel=1e-3)


@pytest.mark.parametrize(
    ("step", "schedule", "expected"),
    [
        (0, "cosine", 0.25),
        (3, "cosine", 1.0),
        (4, "cosine", 1.0),
        (54, "cosine", 0.55),
        (104, "cosine", 0.1),
        (2, "multistep", 0.75),
        (39, "multistep", 1.0),
        (40, "multistep", 0.1),
        (80, "multistep", 0.01),
    ],
)
def test_schedule_values(step, schedule, expected):
    factor = schedule_factor(
        step, steps=104, warmup_steps=4, schedule=schedule, floor=0.1, milestones=(40, 80), gamma=0.1
    )
    assert factor == pytest.approx(expected)


def test_an_unknown_schedule_precision_or_count_is_refused_when_the_config_is_made():
    for wrong, message in [
        ({"schedule": "linear"}, "'cosine' or 'multistep', got 'linear'"),
        ({"precision": "fp16"}, "'fp32' or 'bf16', got 'fp16'"),
        ({"batch": 0}, r"train\.batch must be at least 1, got 0"),
        ({"global_batch": -1}, r"train\.global_batch must be 0 .* or more, got -1"),
        ({"ema": 1.0}, r"train\.ema must be in 0\.\.1"),
    ]:
        with pytest.raises(DeixisError, match=message):
            TrainConfig(**({"steps": 10, "batch": 1} | wrong))


def test_samples_of_all_ranks_and_micro_batches_are_each_drawn_once_in_any_division():
    alone = [sample_indices(s, a, 0, accumulate=2, ranks=1, batch=6) for s in range(3) for a in range(2)]
    assert sorted(i for batch in alone for i in batch) == list(range(36))
    three = [
        [i for r in range(3) for i in sample_indices(s, a, r, accumulate=2, ranks=3, batch=2)]
        for s in range(3)
        for a in range(2)
    ]
    assert three == alone


@pytest.mark.parametrize(
    ("batch", "whole", "processes", "share"),
    [(1, 8, 1, (1, 8)), (1, 8, 2, (1, 4)), (1, 8, 8, (1, 1)), (4, 8, 4, (2, 1)), (4, 0, 2, (2, 1)), (16, 8, 1, (8, 1))],
)
def test_a_step_is_shared_by_processes(batch: int, whole: int, processes: int, share: tuple[int, int]) -> None:
    assert TrainConfig(steps=1, batch=batch, global_batch=whole).share(processes) == share


@pytest.mark.parametrize(("batch", "whole", "processes"), [(1, 8, 3), (1, 4, 8), (3, 8, 1), (3, 16, 2)])
def test_a_step_that_does_not_divide_is_refused(batch: int, whole: int, processes: int) -> None:
    with pytest.raises(DeixisError, match=r"train\.global_batch"):
        TrainConfig(steps=1, batch=batch, global_batch=whole).share(processes)


@pytest.mark.slow
def test_a_step_that_does_not_divide_is_refused_before_anything_is_written(tmp_path):
    done = run_toy(str(tmp_path / "run"), "train.batch=1", "train.global_batch=5", processes=2)
    assert done.returncode != 0
    assert "a step of 5 samples (train.global_batch) cannot be shared by 2 processes" in done.stderr
    assert not (tmp_path / "run").exists()


def test_groups_scale_by_the_longest_prefix_and_spare_one_dimensional_parameters_the_decay():
    system = toy().system()
    system.last.bias.requires_grad_(False)
    groups = parameter_groups(system, {"first.": 0.1, "first.bias": 0.5})
    assert [(g["scale"], g["decay"], [tuple(p.shape) for p in g["params"]]) for g in groups] == [
        (0.1, True, [(8, 4)]),
        (0.5, False, [(8,)]),
        (1.0, True, [(1, 8)]),
    ]
    with pytest.raises(DeixisError, match=r"no parameter begins with 'frist\.'.*first, last"):
        parameter_groups(system, {"frist.": 0.1})


def test_the_average_is_swapped_out_again_when_validation_fails():
    system = toy().system()
    average = WeightAverage(dict(system.named_parameters()), 0.9)
    trained = system.last.weight.detach().clone() + 1
    system.last.weight.data.add_(1)

    def fail():
        with average.swapped_in():
            assert not torch.equal(system.last.weight, trained)
            raise RuntimeError("in validation")

    with pytest.raises(RuntimeError, match="in validation"):
        fail()
    assert torch.equal(system.last.weight, trained)


def test_a_checkpoint_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, {"model/a": torch.ones(2)}, {"step": 1})

    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("deixis.files.os.replace", full)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(path, {"model/a": torch.zeros(2)}, {"step": 2})
    assert load_checkpoint(path)[1] == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.safetensors"]


def test_a_file_that_is_no_checkpoint_is_refused_with_its_name(tmp_path):
    (tmp_path / "x").write_bytes(b"not a checkpoint at all")
    with pytest.raises(DeixisError, match=r"x is not a readable training checkpoint"):
        load_checkpoint(tmp_path / "x")


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Outer:
    queries: int = 5
    flip: bool = False
    place: Path = Path("a")
    limit: float | None = 1.0
    mode: Literal["fast", "good"] = "fast"
    sizes: tuple[int, ...] = (1,)
    pair: tuple[int, float] = (1, 2.0)
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("queries", "10", Outer(queries=10)),
        ("flip", "true", Outer(flip=True)),
        ("place", "b/c", Outer(place=Path("b/c"))),
        ("limit", "none", Outer(limit=None)),
        ("limit", "2e-3", Outer(limit=0.002)),
        ("mode", "good", Outer(mode="good")),
        ("sizes", "3,4,5", Outer(sizes=(3, 4, 5))),
        ("pair", "3,4.5", Outer(pair=(3, 4.5))),
        ("inner.rate", "0.25", Outer(inner=Inner(rate=0.25))),
    ],
)
def test_set_reads_values_by_the_type_of_the_field(key, text, expected):
    assert apply_overrides({f"model.{key}": text}, model=Outer())["model"] == expected


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("model.querys", "1", r"unknown field 'model\.querys'; known: model\.queries, .*model\.inner\.rate"),
        ("modle.queries", "1", r"unknown field 'modle\.queries'; known: model\.queries, .*train\.rate"),
        ("queries", "1", r"unknown field 'queries'; known: model\.queries"),
        ("model.inner", "1", r"unknown field 'model\.inner'"),
        ("model.inner.rat", "1", r"unknown field 'model\.inner\.rat'; known: model\.inner\.rate"),
        ("model.queries.x", "1", r"unknown field 'model\.queries\.x'"),
        ("model.queries", "many", r"model\.queries must be int, got 'many'"),
        ("model.flip", "yes", r"model\.flip must be bool, got 'yes'"),
        ("model.mode", "best", r"model\.mode must be .*'fast', 'good'.*got 'best'"),
        ("model.pair", "1", r"model\.pair must be tuple\[int, float\], got '1'"),
    ],
)
def test_set_refuses_what_it_does_not_know_with_the_list_of_what_it_does(key, text, message):
    with pytest.raises(DeixisError, match=message):
        apply_overrides({key: text}, model=Outer(), train=Inner())


def test_an_unknown_recipe_is_refused():
    with pytest.raises(DeixisError, match="no recipe 'lihgt'"):
        find_recipe("lihgt")


@pytest.fixture
def toy_recipe(monkeypatch):
    def recipe(data, *, overrides):
        run = toy(config=ToyConfig(dropout=0))
        configs = apply_overrides(overrides, model=run.config, train=run.train)
        return replace(toy(config=configs["model"]), train=configs["train"])

    monkeypatch.setitem(RECIPES, "toy", recipe)
    return lambda *words: CliRunner().invoke(app, ["train", "toy", "--device", "cpu", *words])


def test_the_command_trains_with_changed_fields_and_says_what_it_did(toy_recipe, tmp_path):
    done = toy_recipe(
        "-o", str(tmp_path / "out"), "--set", "train.steps=3", "--set", "model.width=4", "--set", "train.log_every=2"
    )
    assert done.exit_code == 0, done.stderr
    assert done.stdout.strip() == f"finished at step 3 of 3; the model: {tmp_path / 'out' / 'model.safetensors'}"
    assert [line.split(" | ")[0] for line in done.stderr.splitlines()] == ["step 2/3", "step 3/3"]
    assert "absolute" in done.stderr
    assert "samples/s" in done.stderr
    assert "min left" in done.stderr
    written = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (written["config"]["width"], written["train"]["steps"]) == (4, 3)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--set", "train.stepps=3"], "deixis: unknown field 'train.stepps'; known: train.steps, train.batch, "),
        (["--set", "train.steps"], "deixis: expected --set FIELD=VALUE, got 'train.steps'"),
        (["--data", "coco"], "deixis: expected --data NAME=PATH, got 'coco'"),
        (["--device", "tpu"], "deixis: unknown device 'tpu'"),
    ],
)
def test_a_wrong_option_of_the_command_ends_in_one_line_and_status_2(toy_recipe, tmp_path, words, line):
    done = toy_recipe("-o", str(tmp_path / "out"), *words)
    assert done.exit_code == 2
    assert done.stderr.startswith(line)
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_command_ended_by_sigterm_has_its_status(toy_recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(RECIPES, "toy", _ending_itself(RECIPES["toy"]))
    done = toy_recipe("-o", str(tmp_path / "out"))
    assert done.exit_code == 128 + signal.SIGTERM
    assert done.stdout.startswith("SIGTERM at step 1 of 6")
    assert read_facts(tmp_path / "out" / "last.safetensors")["step"] == 1


def _ending_itself(recipe):
    def collate(samples):
        os.kill(os.getpid(), signal.SIGTERM)
        return torch_stack(samples)

    return lambda data, *, overrides: replace(recipe(data, overrides=overrides), collate=collate)
