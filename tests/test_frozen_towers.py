"""Frozen towers: never trained, not saved where they have a name, and never silently another one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from deixis.encoders.frozen import (
    FrozenTower,
    TowerWeights,
    fill_towers,
    find_file,
    read_own,
    read_tensors,
    save_tower,
    tower_facts,
)
from deixis.training.checkpoint import pack_state, unpack_state
from deixis.training.optimizer import build_optimizer, parameter_groups
from deixis.types import DeixisError


@dataclass(frozen=True, kw_only=True)
class EyeConfig:
    width: int = 4
    place: str = ""


class Eye(FrozenTower):
    def __init__(self, config: EyeConfig) -> None:
        super().__init__(config.place, self.make_body, self.read_weights)
        self.config = config

    def make_body(self) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.LayerNorm(4))

    def read_weights(self, place: str, beside: Path | None) -> TowerWeights:
        path = find_file(place, beside)
        return read_own(path, "Eye", self.config) or TowerWeights(read_tensors(path))

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


class System(nn.Module):
    def __init__(self, place: str = "") -> None:
        super().__init__()
        self.prompt, self.eye = nn.Parameter(torch.randn(2, 3)), Eye(EyeConfig(place=place))

    def forward(self) -> Tensor:
        return self.eye(self.prompt).square().sum()


@pytest.fixture
def place(tmp_path: Path) -> str:
    torch.manual_seed(0)
    save_tower(Eye(EyeConfig()), tmp_path / "eye.safetensors")
    return str(tmp_path / "eye.safetensors")


def test_a_named_tower_is_left_out_of_the_state_dict_and_comes_back_from_its_place(place: str) -> None:
    torch.manual_seed(1)
    system, again = fill_towers(System(place)), System(place)
    assert sorted(system.state_dict()) == ["eye.fingerprint", "prompt"]
    again.load_state_dict(system.state_dict())
    fill_towers(again)
    assert torch.equal(again(), system())
    system.load_state_dict(again.state_dict())  # also into a tower that is there already
    assert torch.equal(again(), system())


def test_a_nameless_tower_is_saved_like_everything_else() -> None:
    torch.manual_seed(1)
    system, again = System(), System()
    assert "eye.body.0.weight" in system.state_dict()
    assert not torch.equal(again(), system())
    again.load_state_dict(system.state_dict())
    assert torch.equal(again(), system())


def test_a_tower_stays_in_evaluation_mode_and_takes_no_gradient_but_hands_it_on(place: str) -> None:
    for system in (System(), fill_towers(System(place))):
        system.train()
        assert system.training
        assert not any(part.training for part in system.eye.modules())
        system().backward()
        assert system.prompt.grad is not None
        assert all(p.grad is None and not p.requires_grad for p in system.eye.parameters())
        groups = parameter_groups(system)
        assert [id(p) for g in groups for p in g["params"]] == [id(system.prompt)]


def test_an_empty_tower_says_so() -> None:
    with pytest.raises(DeixisError, match="not loaded"):
        System("somewhere/eye")()


def test_a_tower_with_other_weights_is_refused_whichever_comes_first(place: str, tmp_path: Path) -> None:
    stored = fill_towers(System(place)).state_dict()
    torch.manual_seed(9)
    save_tower(Eye(EyeConfig()), Path(place))  # another one, at the same place
    early = System(place)
    early.load_state_dict(stored)
    with pytest.raises(DeixisError, match="other weights"):
        fill_towers(early)
    with pytest.raises(DeixisError, match="other weights"):
        fill_towers(System(place)).load_state_dict(stored)


def test_a_tower_file_is_found_beside_the_checkpoint_too(place: str, tmp_path: Path) -> None:
    system = fill_towers(System("elsewhere/eye.safetensors"), beside=tmp_path)
    assert torch.isfinite(system())


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"0.weight": (4, 3)}, "keys missing"),
        ({"0.weight": (4, 3), "0.bias": (4,), "2.weight": (4,), "2.bias": (4,), "more": (1,)}, "keys left over"),
        ({"0.weight": (4, 2), "0.bias": (4,), "2.weight": (4,), "2.bias": (4,)}, r"0.weight is \(4, 2\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(state: dict[str, Any], words: str, tmp_path: Path) -> None:
    save_file({k: torch.zeros(shape) for k, shape in state.items()}, tmp_path / "model.safetensors")
    with pytest.raises(DeixisError, match=words):
        fill_towers(System(str(tmp_path)))


@pytest.mark.parametrize("name", ["no/where", "nothing.safetensors", "a/b/c"])
def test_a_place_that_is_none_is_said_in_one_line(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DeixisError, match="frozen tower") as caught:
        fill_towers(System(name))
    assert "\n" not in str(caught.value)


def test_a_folder_without_weights_and_a_file_that_is_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DeixisError, match="holds no weights"):
        fill_towers(System(str(tmp_path)))
    (tmp_path / "pytorch_model.bin").write_bytes(b"no weights at all")
    with pytest.raises(DeixisError, match="file of weights"):
        fill_towers(System(str(tmp_path)))


def test_a_pickle_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"0.weight": Trap()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(DeixisError, match="would run code"):
        fill_towers(System(str(tmp_path)))
    assert not (tmp_path / "sprung").exists()


def test_a_tower_file_states_its_kind_and_config(place: str, tmp_path: Path) -> None:
    facts = tower_facts(Path(place))
    assert facts is not None
    assert (facts["kind"], facts["config"]) == ("Eye", {"width": 4, "place": ""})
    with pytest.raises(DeixisError, match="kind Eye, expected Ear"):
        read_own(Path(place), "Ear", EyeConfig())
    with pytest.raises(DeixisError, match="with width 4, expected 5"):
        read_own(Path(place), "Eye", EyeConfig(width=5))
    save_file({"x": torch.zeros(1)}, tmp_path / "plain.safetensors")
    assert tower_facts(tmp_path / "plain.safetensors") is None


def test_a_training_checkpoint_does_without_the_tower(place: str) -> None:
    system = fill_towers(System(place))
    optimizer = build_optimizer(parameter_groups(system), lr=0.1, weight_decay=0.0, betas=(0.9, 0.99))
    system().backward()
    optimizer.step()
    kept = pack_state(system, optimizer, None)
    assert sorted(k for k in kept if k.startswith("model/")) == ["model/eye.fingerprint", "model/prompt"]
    again = fill_towers(System(place))
    unpack_state(
        kept, again, build_optimizer(parameter_groups(again), lr=0.1, weight_decay=0.0, betas=(0.9, 0.99)), None
    )
    assert torch.equal(again(), system())
