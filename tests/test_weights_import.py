"""The authors' files become ours, key by key; wrong, cut off and hostile ones get one clear line."""

from __future__ import annotations

import gzip
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.downloads import checkpoint, official_state, small_system
from torch import Tensor
from typer.testing import CliRunner

from deixis import weights, weights_import
from deixis.cli import app
from deixis.encoders.video_swin import VideoSwin, VideoSwinConfig, video_swin_b
from deixis.inference import predict_clip
from deixis.linking import Presence
from deixis.selection import choose_queries
from deixis.systems.soc import Soc, SocConfig
from deixis.systems.soc_plus_plus import SocPlusPlus, SocPlusPlusConfig
from deixis.types import Clip, DeixisError, Expression

KEYS = Path(__file__).parent / "data" / "official_keys.json.gz"  # names, shapes and types: no weights


def key_list(name: str) -> dict[str, tuple[int, ...]]:
    rows = [line.split("\t") for line in json.loads(gzip.decompress(KEYS.read_bytes()))[name] if line.strip()]
    return {key: tuple(int(n) for n in shape.strip("()").split(",") if n.strip()) for key, shape, _ in rows}


@pytest.mark.parametrize(
    ("name", "system", "config", "count"),
    [
        ("soc", "soc", SocConfig(), 696),
        ("soc_b", "soc", SocConfig(vision=video_swin_b()), 864),
        ("soc_plus_plus", "soc_plus_plus", SocPlusPlusConfig(), 724),
    ],
)
def test_every_official_key_is_consumed_by_name_and_shape(name: str, system: str, config: Any, count: int) -> None:
    official = key_list(name)
    assert len(official) == count
    with torch.device("meta"):
        model = (Soc if system == "soc" else SocPlusPlus)(config)
        state, left_out = weights_import.rename_keys(
            {k: torch.empty(shape) for k, shape in official.items()}, system, Path(name), check_copies=False
        )
    ours = {k: tuple(v.shape) for k, v in model.state_dict().items() if not k.endswith("_extra_state")}
    assert {k: tuple(v.shape) for k, v in state.items()} == ours
    assert len(state) + len(left_out) == count
    assert set(left_out.values()) == {
        "a constant, computed from the window's size",
        "a second copy of bbox_embed, checked to be equal",
    }
    for key in state:
        assert weights_import.match_key(weights_import.official_name(key, system), weights_import.TABLES[system]) == key


@pytest.fixture(params=["soc", "soc_plus_plus"])
def case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Any, dict[str, Tensor]]:
    """A system, a small model of it, and that model's official state; the importer builds the small model too."""
    system = request.param
    model = small_system(system)
    monkeypatch.setattr(weights_import, "build_for", lambda official, name, path: small_system(name))
    return system, model, official_state(model, system)


def test_a_checkpoint_of_the_authors_becomes_the_same_model(case: Any, tmp_path: Path) -> None:
    system, model, state = case
    done = weights_import.import_checkpoint(checkpoint(tmp_path / "a.pth", state), system)
    ours = done.system.state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(ours[key], value), key
    assert len(done.left_out) == 2 + sum(k.startswith("bbox_embed") for k in state)
    weights.save(done.system, tmp_path / "a.safetensors")
    again = weights.load(tmp_path / "a.safetensors")
    assert type(again) is type(model)


@pytest.mark.parametrize("wrap", ["bare", "ddp", "vita", "profiled"])
def test_variants_of_the_file_are_read_alike(case: Any, wrap: str, tmp_path: Path) -> None:
    system, _, state = case
    if wrap == "ddp":
        state = {f"module.{k}": v for k, v in state.items()}
    if wrap == "vita":
        state = {"vita." + k[4:] if k.startswith("voc.") else k: v for k, v in state.items()}
    if wrap == "profiled":
        state = {**state, "input_proj.0.0.total_ops": torch.zeros(1)}
    torch.save(state, tmp_path / "b.pth")
    assert weights_import.import_checkpoint(tmp_path / "b.pth", system).system is not None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("missing", "1 keys missing, such as transformer.query_position"),
        ("unknown", "1 keys are unknown to soc"),
        ("shape", r"transformer.query_position is \(2, 2\), expected"),
        ("copy", "should be a copy of bbox_embed"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_by_name(case: Any, change: str, said: str, tmp_path: Path) -> None:
    system, _, state = case
    if change == "missing":
        del state["query_embed.weight"]
    if change == "unknown":
        state["something.else"] = torch.zeros(1)
    if change == "shape":
        state["query_embed.weight"] = torch.zeros(2, 2)
    if change == "copy":
        state["transformer.decoder.bbox_embed.0.layers.0.weight"] += 1
    with pytest.raises(DeixisError, match=said):
        weights_import.import_checkpoint(checkpoint(tmp_path / "c.pth", state), system)


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("hostile-code-ran",))


def bad_file(kind: str, folder: Path) -> Path:
    path = folder / f"{kind}.pth"
    if kind == "hostile":
        torch.save({"model_state_dict": {"a": torch.zeros(1)}, "epoch": Hostile()}, path)
    elif kind == "hostile old pickle":
        path.write_bytes(pickle.dumps({"state_dict": Hostile()}))
    elif kind == "cut off":
        torch.save({"a": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:-600])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("<html>quota exceeded</html>")
    elif kind == "no tensors":
        torch.save({"model_state_dict": {"a": 3}}, path)
    elif kind == "another model":
        torch.save({"conv1.weight": torch.zeros(1)}, path)
    return path  # kind "absent": nothing is written


KINDS = ("hostile", "hostile old pickle", "cut off", "empty", "text", "no tensors", "another model", "absent")


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_file_gets_one_clear_line_and_runs_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = bad_file(kind, tmp_path)
    with pytest.raises(DeixisError) as caught:
        weights_import.import_checkpoint(path, "soc")
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    assert not Path("hostile-code-ran").exists()


def test_the_command_writes_a_file_that_segment_takes_and_names_what_it_left_out(case: Any, tmp_path: Path) -> None:
    system, _, state = case
    out = tmp_path / "ours.safetensors"
    arguments = ["weights", "import", str(checkpoint(tmp_path / "a.pth", state)), "--system", system, "-o", str(out)]
    arguments += ["--set", "short_side=48", "--set", "kept_queries=2"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "left out text_encoder.embeddings.position_ids: a constant" in result.output
    model: Any = weights.load(out)
    assert (model.config.short_side, model.config.kept_queries) == (48, 2)
    frames = torch.zeros(2, 3, 64, 96, dtype=torch.uint8)
    clip = Clip(frames, ("0", "1"), (0.0, 0.1), (64, 96))
    read = lambda prediction, size, padded, _: choose_queries(prediction, Presence(), size, padded)  # noqa: E731
    found = predict_clip(model, clip, [Expression("dog")], read, torch.device("cpu"))
    assert found[0].logits.shape[1:] == (2, 16, 24)
    assert json.loads(out.with_suffix(".json").read_text())["left_out"]


def test_an_output_of_import_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = weights_import.Imported(weights.load("soc_debug"), {})
    monkeypatch.setattr(weights_import, "import_checkpoint", lambda *_, **__: done)
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "o.safetensors"
    result = CliRunner().invoke(app, ["weights", "import", "a.pth", "--system", "soc", "-o", str(out)])
    assert result.exit_code == 2, result.exception
    assert result.stderr.startswith(f"deixis: {out}: cannot be written (")
    assert result.stderr.count("\n") == 1


def test_the_command_refuses_a_bad_file_in_one_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pth"
    bad.write_text("quota exceeded")
    result = CliRunner().invoke(
        app, ["weights", "import", str(bad), "--system", "soc", "-o", str(tmp_path / "o.safetensors")]
    )
    assert result.exit_code == 2
    assert "bad.pth" in result.output
    assert not (tmp_path / "o.safetensors").exists()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"width": "8"}, "'width' cannot be set on import; known: eval_level"),
        ({"eval_level": "first"}, "eval_level must be one of last, official, got 'first'"),
        ({"window": "many"}, "window must be a whole number, got 'many'"),
    ],
)
def test_settings_change_how_a_checkpoint_is_used_and_nothing_else(setting: dict[str, str], said: str) -> None:
    with pytest.raises(DeixisError, match=said):
        weights_import.with_settings(SocConfig(), setting)


def test_sizes_are_read_from_shapes() -> None:
    state = {
        "backbone.0.body.patch_embed.proj.weight": torch.empty(128, 3, 1, 4, 4, device="meta"),
        "class_embed.0.weight": torch.empty(65, 256, device="meta"),
        "text_encoder.embeddings.word_embeddings.weight": torch.empty(50265, 768, device="meta"),
    }
    with torch.device("meta"):
        model = weights_import.build_for(state, "soc", Path("x.pth"))
    assert model.config.vision == video_swin_b()
    assert (model.config.classes, model.config.eval_level) == (65, "official")
    with pytest.raises(DeixisError, match="a checkpoint of soc, not of soc_plus_plus"):
        weights_import.build_for(state, "soc_plus_plus", Path("x.pth"))


@pytest.mark.parametrize("merge", ["downsamples.{}.", "layers.{}.downsample."])
def test_kinetics_weights_start_the_vision_with_patches_summed_over_time(merge: str, tmp_path: Path) -> None:
    config = VideoSwinConfig(dim=8, depths=(1, 1), heads=(1, 2), window=(2, 3, 3))
    source = VideoSwin(config)
    state = {}
    for key, value in source.state_dict().items():
        name = weights_import.match_key(key, tuple((b, a) for a, b in weights_import.KINETICS_KEYS)) or ""
        state[f"backbone.{name}".replace("downsamples.0.", merge.format(0))] = value
    halves = source.patch_embed.proj.weight[:, :, None] * torch.tensor([0.25, 0.75])[:, None, None]
    state["backbone.patch_embed.proj.weight"] = halves.detach()
    state |= {"backbone.norm.weight": torch.ones(16), "cls_head.fc_cls.weight": torch.ones(4, 16)}
    torch.save({"state_dict": state}, tmp_path / "k.pth")
    encoder = VideoSwin(config)
    left_out = weights_import.load_kinetics(encoder, tmp_path / "k.pth")
    assert set(left_out) == {"backbone.norm.weight", "cls_head.fc_cls.weight"}
    for key, value in source.state_dict().items():
        assert torch.allclose(encoder.state_dict()[key], value), key
