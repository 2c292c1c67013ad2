"""Checkpoints: what is saved comes back, and a file that lies is refused in one line before it costs memory."""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from helpers.films import Colours, ColoursConfig, colours

from deixis import systems, weights
from deixis.config import check_bounds, config_from
from deixis.types import DeixisError
from deixis.weights import find, load, quantise, read_header, restore, save


@pytest.fixture(autouse=True)
def _colours_is_a_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(systems.SYSTEMS, "colours", (Colours, ColoursConfig))
    monkeypatch.setitem(systems.PRESETS, "colours_debug", colours)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    save(Colours(ColoursConfig(sharpness=33.0, mean=(0.1, 0.2, 0.3))), tmp_path / "c.safetensors")
    return tmp_path / "c.safetensors"


def rewrite(path: Path, change: Any) -> Path:
    """Change the JSON header of a safetensors file by ``change(header)``, and keep its data."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return path


def change_facts(**facts: Any) -> Any:
    def change(header: dict) -> None:
        header["__metadata__"]["deixis"] = json.dumps({**json.loads(header["__metadata__"]["deixis"]), **facts})

    return change


def test_a_saved_system_comes_back_with_its_config_weights_and_bytes(file: Path) -> None:
    torch.manual_seed(5)
    before, after = Colours(ColoursConfig(sharpness=33.0, mean=(0.1, 0.2, 0.3))), load(file)
    assert after.config == before.config
    assert isinstance(after.config.mean, tuple)
    assert not after.training
    for key, value in before.state_dict().items():
        assert torch.equal(after.state_dict()[key], value), key
    assert sorted(p.name for p in file.parent.iterdir()) == ["c.safetensors"]


def test_rows_stored_as_int8_come_back_within_half_a_step(tmp_path: Path) -> None:
    torch.manual_seed(1)
    system = colours()
    save(system, tmp_path / "c.safetensors", int8=["note."])
    after = load(tmp_path / "c.safetensors")
    _, entries = read_header(tmp_path / "c.safetensors")
    assert entries["note.weight.int8"]["dtype"] == "I8"
    assert entries["note.weight.scale"]["shape"] == [4]
    assert "note.weight" not in entries
    step = system.note.weight.abs().amax(1, keepdim=True) / 127
    assert ((after.note.weight - system.note.weight).abs() <= step / 2 + 1e-7).all()
    assert torch.equal(after.note.bias, system.note.bias)
    assert torch.equal(after.mix, system.mix)


def test_half_precision_is_stored_small_and_loaded_as_fp32(tmp_path: Path) -> None:
    system = colours()
    save(system, tmp_path / "c.safetensors", half=["note", "mix"])
    assert read_header(tmp_path / "c.safetensors")[1]["mix"]["dtype"] == "F16"
    after = load(tmp_path / "c.safetensors")
    assert after.mix.dtype == torch.float32
    assert torch.allclose(after.note.weight, system.note.weight, atol=1e-3)


@pytest.mark.parametrize("shape", [(3, 5), (4, 2, 3, 3), (1, 7)])
def test_quantising_keeps_the_shape_and_zero_rows(shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape)
    tensor[0] = 0
    back = restore(*quantise(tensor))
    assert back.shape == tensor.shape
    assert torch.allclose(back, tensor, atol=tensor.abs().max().item() / 250)


def test_the_card_lies_beside_the_weights_with_the_config(tmp_path: Path) -> None:
    save(colours(), tmp_path / "c.safetensors", card={"licence": "Apache-2.0", "commit": "abc"})
    card = json.loads((tmp_path / "c.json").read_text())
    assert card["licence"] == "Apache-2.0"
    assert card["system"] == "colours"
    assert card["config"]["short_side"] == 72


def test_saving_over_a_checkpoint_never_leaves_half_of_one(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        save(colours(), file)
    assert file.read_bytes() == before
    assert [p.name for p in file.parent.iterdir()] == ["c.safetensors"]


def test_a_debug_preset_needs_no_file_and_is_the_same_every_time() -> None:
    before = torch.random.get_rng_state()
    one, two = load("colours_debug"), load("colours_debug")
    assert torch.equal(one.note.weight, two.note.weight)
    assert torch.equal(before, torch.random.get_rng_state())
    assert find("colours_debug") is None


def test_a_system_that_is_not_ours_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(DeixisError, match="Linear is not among the systems"):
        save(torch.nn.Linear(2, 2), tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_every_known_checkpoint_names_a_preset_and_a_licence() -> None:
    for name, checkpoint in weights.KNOWN.items():
        assert checkpoint.name == name
        assert checkpoint.preset in systems.PRESETS
        assert checkpoint.licence
        if checkpoint.place.is_file() and checkpoint.sha256:
            assert weights.sha256(checkpoint.place) == checkpoint.sha256


# --- files that lie ---------------------------------------------------------------------------------------------------


def one_line(path: Path, words: str) -> None:
    with pytest.raises(DeixisError, match=words) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_checkpoint_that_is_cut_off_is_refused(file: Path, share: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    one_line(file, "cut off|holds . bytes|holds 0 bytes")


def test_bytes_after_the_weights_are_refused(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"more")
    one_line(file, "cut off or overlong")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04" + b"x" * 50, "pickle, which may run code"),
        (b"\x80\x02}q\x00X\x05" + b"x" * 50, "pickle, which may run code"),
        (b"not a checkpoint at all", "not a safetensors file"),
        (struct.pack("<Q", 2**60) + b"{}", "cut off within its header"),
        (struct.pack("<Q", 5) + b"[1,2]", "not an object"),
        (struct.pack("<Q", 4) + b"\xff\xfe{}", "header is not JSON"),
        (struct.pack("<Q", 40_000) + b"[" * 40_000, "header is not JSON"),
        (struct.pack("<Q", 2) + b"{}", "does not say which deixis system"),
    ],
)
def test_what_is_not_a_checkpoint_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    one_line(tmp_path / "x.safetensors", words)


def set_entry(key: str, **values: Any) -> Any:
    return lambda header: header[key].update(values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_entry("mix", shape=[300000, 300000]), "does not lie where its shape says"),
        (set_entry("mix", shape=[-3, -3]), "shape that cannot be"),
        (set_entry("mix", shape=["3", 3]), "shape that cannot be"),
        (set_entry("mix", dtype="OBJECT"), "unknown type"),
        (set_entry("mix", data_offsets=[0, 10**15]), "does not lie|cut off"),
        (set_entry("mix", data_offsets=[0]), "malformed"),
        (set_entry("mix", data_offsets="ab"), "malformed|does not lie"),
        (lambda h: h.update(mix=7), "malformed"),
        (set_entry("mix", shape=[9]), "of another shape mix"),
        (lambda h: h.update(other=h.pop("mix")), "missing mix; unexpected other"),
        (lambda h: h.pop("__metadata__"), "does not say which deixis system"),
        (lambda h: h["__metadata__"].update(deixis="{"), "does not say which deixis system"),
        (lambda h: h["__metadata__"].update(deixis="[1]"), "does not say which deixis system"),
        (change_facts(format=99), "format 99, this deixis reads 1"),
        (change_facts(system="os"), "system 'os', unknown here"),
        (change_facts(config=[]), "does not say which"),
        (change_facts(config={"short_side": "72"}), r"ColoursConfig.short_side must be int, got '72'"),
        (change_facts(config={"short_side": 10**18}), "short_side must be int, got 1000000000000000000"),
        (change_facts(config={"sharpness": float("nan")}), "sharpness must be float"),
        (change_facts(config={"layers": 10**9}), "has no layers; it has window, short_side"),
        (change_facts(config={"mean": [1.0, 2.0]}), "mean must be"),
    ],
)
def test_a_header_that_lies_is_refused(file: Path, change: Any, words: str) -> None:
    one_line(rewrite(file, change), words)


def test_int8_rows_without_their_scales_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save(colours(), path, int8=["note."])
    one_line(rewrite(path, lambda h: h.update({"note.weight.other": h.pop("note.weight.scale")})), "one scale a row")


def test_bytes_that_the_system_cannot_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Colours, "get_extra_state", lambda self: torch.zeros(3, dtype=torch.uint8))
    save(colours(), tmp_path / "c.safetensors")
    one_line(tmp_path / "c.safetensors", "cannot be loaded")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nonesuch", "unknown model 'nonesuch'; expected light or a .safetensors file; `deixis models` lists"),
        ("folder/nonesuch.safetensors", "no such checkpoint file: folder/nonesuch.safetensors"),
        ("nonesuch.pt", "no such checkpoint file"),
        ("soc_swin_t", "'soc_swin_t' has no weights here; import the authors' with `deixis weights import FILE.pth"),
        ("soc_plus_plus_swin_t", "--system soc_plus_plus -o soc_plus_plus_swin_t.safetensors` and give --model"),
        ("vlp_rvos", "'vlp_rvos' has no weights here; train them with `deixis train RECIPE -o OUT`"),
        ("slvp_swin_b", r"unknown model 'slvp_swin_b' \(did you mean 'soc_swin_b'\?\)"),
    ],
)
def test_an_unknown_model_is_said_with_what_is_known(name: str, words: str) -> None:
    with pytest.raises(DeixisError, match=words):
        load(name)


# --- configs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Inner:
    depths: tuple[int, ...] = (2, 2)


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    size: tuple[int, int] = (1, 2)
    rate: float = 0.5
    kind: Literal["a", "b"] = "a"
    limit: int | None = None
    on: bool = False
    stages: tuple[tuple[int, ...], ...] = ()
    names: list[str] = field(default_factory=list)


def test_a_config_survives_json() -> None:
    inner = Inner(depths=(1, 6, 2))
    config = Outer(inner=inner, size=(3, 4), rate=1.0, kind="b", limit=7, on=True, stages=((1, 2), (3,)), names=["x"])
    assert config_from(Outer, json.loads(json.dumps(asdict(config))), "here") == config
    assert config_from(Outer, {"rate": 2, "limit": None}, "here") == replace(Outer(), rate=2.0)


@pytest.mark.parametrize(
    "values",
    [
        {"inner": 3}, {"inner": {"depth": [1]}}, {"size": [1, 2, 3]}, {"size": "12"}, {"kind": "c"}, {"limit": "7"},
        {"on": 1}, {"rate": True}, {"stages": [1]}, {"names": [1]}, {"nothing": 1}, {"rate": float("inf")},
    ],
)  # fmt: skip
def test_a_config_of_wrong_types_is_refused_by_name(values: dict) -> None:
    with pytest.raises(DeixisError, match="here"):
        config_from(Outer, values, "here")


@dataclass(frozen=True, kw_only=True)
class Warm(ColoursConfig):
    warmups: int = 0
    window: int = 3


def test_a_new_field_that_is_0_is_saved_and_loaded_again() -> None:
    check_bounds(Warm(), "here")
    check_bounds(config_from(Warm, json.loads(json.dumps(asdict(Warm()))), "here"), "here")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"warmups": -1}, "here: its config states warmups -1, expected 0 or more"),
        ({"window": 0}, "here: its config states window 0, expected 1..1024"),
        ({"window": 2000}, "window 2000, expected 1..1024"),
        ({"std": (0.2, 0.0, 0.2)}, "states std"),
    ],
)
def test_a_field_outside_its_bounds_is_refused_also_where_a_subclass_gives_it_another_default(
    values: dict, words: str
) -> None:
    with pytest.raises(DeixisError, match=words):
        check_bounds(Warm(**values), "here")
