"""Pretrained towers that stay as they are, and how a checkpoint does without them.

A tower is *named* by its place: a hub id, a folder, or a file. Then a system's state dict, and so every checkpoint,
holds only the tower's fingerprint, and ``fill_towers`` reads the weights again from their place. A tower without a name
is made with random weights (tests, debug presets), or is still being trained, and is saved like everything else.

Either way its parameters take no gradient, so no optimiser has them, and it stays in evaluation mode. What runs through
it may carry gradients: prompts learn through frozen layers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from deixis.encoders.tokenizers import tokenizer_bytes, tokenizer_of
from deixis.old_keys import first_keys, key_of_today
from deixis.types import DeixisError

TOWER_FORMAT = 1  # of a tower file that we wrote
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of RGB in 0..1 (read: CLIP's published preprocessing)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # what a hub folder holds, the first one there is taken
_TOKENIZER = "tokenizer"  # its key in a tower file: bytes as uint8
# What PyTorch's weights-only reader raises on bytes that are no weights.
_GARBAGE = (RuntimeError, OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, AssertionError)


@dataclass(frozen=True, eq=False)
class TowerWeights:
    """What was read of a tower: tensors under the body's own keys, and its tokenizer where the place has one."""

    state: dict[str, Tensor]
    tokenizer: Tokenizer | None = None


class FrozenTower(nn.Module):
    """The frozen part of a system. A subclass gives ``make``, which builds the body with random weights, and ``read``,
    which reads the weights from a file or folder (for a hub id: from the file in the hub's cache).

    A named tower is empty, and its ``body`` None, until ``fill``; ``self.whole`` raises DeixisError until then.
    ``tokenizer`` is set by ``fill``, by a subclass, or by the state dict of a nameless tower.
    """

    fingerprint: Tensor

    def __init__(
        self, place: str, make: Callable[[], nn.Module], read: Callable[[str, Path | None], TowerWeights]
    ) -> None:
        super().__init__()
        self.place, self.make, self.read = place, make, read
        self.tokenizer: Tokenizer | None = None
        self.body: nn.Module | None = None
        if place:
            self.register_buffer("fingerprint", torch.zeros(32, dtype=torch.uint8))  # zeros: not known
        else:
            self.body = make().requires_grad_(False).eval()
        self.register_load_state_dict_pre_hook(_keep_own_weights)

    @property
    def module(self) -> Any:
        """The body. Raises DeixisError where it was never filled."""
        if self.body is None:
            raise DeixisError(
                f"the frozen tower {self.place!r} is not loaded; load the model with deixis.load, or call fill_towers"
            )
        return self.body

    def fill(self, beside: Path | None = None) -> None:
        """Read the weights of a named tower from its place, once.

        beside: a folder in which a file of the same name may lie too (a checkpoint's). Raises DeixisError where
        nothing is found, where anything is missing, left over or of another shape, and where the checkpoint that was
        loaded before belongs to other tower weights.
        """
        if self.body is not None:
            return
        found = self.read(self.place, beside)
        with torch.device("meta"):
            check_fit(self.make(), found.state, self.place)  # before a lying config costs memory
        body = self.make()
        body.load_state_dict(found.state)
        fingerprint = fingerprint_of(body)
        _check_fingerprint(self.fingerprint, fingerprint, self.place)
        device = self.fingerprint.device
        self.fingerprint = fingerprint.to(device)
        self.body = body.requires_grad_(False).eval().to(device)
        self.tokenizer = found.tokenizer if found.tokenizer is not None else self.tokenizer

    def train(self, mode: bool = True) -> FrozenTower:
        return super().train(False)  # frozen: no dropout, whatever the system around it does

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Of a named tower: its fingerprint alone."""
        if not self.place:
            return super().state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)
        destination = {} if destination is None else destination
        destination[f"{prefix}fingerprint"] = self.fingerprint
        return destination

    def get_extra_state(self) -> Tensor:
        return tokenizer_bytes(self.tokenizer)

    def set_extra_state(self, state: Tensor) -> None:
        self.tokenizer = tokenizer_of(state) or self.tokenizer


def fill_towers(system: nn.Module, beside: Path | None = None) -> nn.Module:
    """The system with all its named towers read from their places. Raises as ``FrozenTower.fill``."""
    for part in system.modules():
        if isinstance(part, FrozenTower):
            part.fill(beside)
    return system


def _keep_own_weights(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before a state dict is loaded: a named tower keeps what it has, but refuses the fingerprint of another."""
    assert isinstance(module, FrozenTower)
    if not module.place:
        return
    if module.body is not None:
        stored = state.get(f"{prefix}fingerprint")
        if isinstance(stored, Tensor):
            _check_fingerprint(stored, module.fingerprint, module.place)
            state[f"{prefix}fingerprint"] = module.fingerprint
        state.update({f"{prefix}body.{key}": value for key, value in module.body.state_dict().items()})
    state[f"{prefix}_extra_state"] = module.get_extra_state()


def _check_fingerprint(wanted: Tensor, found: Tensor, place: str) -> None:
    if wanted.device.type == "meta" or not bool(wanted.any()):
        return
    if not torch.equal(wanted.cpu(), found.cpu()):
        raise DeixisError(
            f"the frozen tower at {place!r} has other weights than the one that this checkpoint was trained with; "
            "give that one its place back"
        )


def fingerprint_of(body: nn.Module) -> Tensor:
    """(32,) uint8: SHA-256 over the names and values of a module's state, in order of the names."""
    digest = hashlib.sha256()
    state = body.state_dict()
    for key, today in sorted(first_keys(state).items()):
        value = state[today]
        if isinstance(value, Tensor):
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def check_fit(body: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Raise DeixisError unless ``state`` has exactly the body's keys and shapes. where: what messages call it."""
    wanted = {k: tuple(v.shape) for k, v in body.state_dict().items()}
    missing, left = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    for what, keys in (("missing", missing), ("left over", left)):
        if keys:
            raise DeixisError(f"{where} does not fit: {len(keys)} keys {what}, such as {', '.join(keys[:3])}")
    for key, shape in wanted.items():
        if tuple(state[key].shape) != shape:
            raise DeixisError(f"{where} does not fit: {key} is {tuple(state[key].shape)}, expected {shape}")


# --- places and files ------------------------------------------------------------------------------------------------


def find_file(place: str, beside: Path | None = None, names: tuple[str, ...] = WEIGHT_FILES) -> Path:
    """The file of weights that a place means: itself, one of ``names`` in a folder, or in the hub's repository.

    The hub is used only where its cache has no copy. Raises DeixisError where there is none.
    """
    path = Path(place)
    near = None if beside is None else beside / path.name
    for candidate in (path, near):
        if candidate is not None and candidate.is_file():
            return candidate
        if candidate is not None and candidate.is_dir():
            for name in names:
                if (candidate / name).is_file():
                    return candidate / name
            raise DeixisError(f"the folder {candidate} holds no weights; expected {' or '.join(names)} in it")
    if path.suffix in (".safetensors", ".bin", ".pt", ".pth") or path.is_absolute() or place.count("/") != 1:
        tried = place if near is None else f"{place} or {near}"
        raise DeixisError(f"no frozen tower at {tried}; give the place of its weights: a file, a folder, or a hub id")
    return _from_hub(place, names)


def _from_hub(name: str, names: tuple[str, ...]) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for offline in (True, False):
        for file in names:
            try:
                return Path(hf_hub_download(name, file, local_files_only=offline))
            except LocalEntryNotFoundError:
                continue
            except EntryNotFoundError:
                continue
            except (OSError, ValueError) as error:
                raise _not_on_hub(name) from error
    raise _not_on_hub(name)


def _not_on_hub(name: str) -> DeixisError:
    return DeixisError(
        f"the frozen tower {name!r} is neither a folder nor in the hub's cache, and the hub did not answer with it; "
        "connect once, or name a folder that holds its files"
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a PyTorch file through its weights-only reader; nothing is executed.

    Of a PyTorch file, what lies under "state_dict", "model" or "module" where that is a table of tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        holds = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise DeixisError(f"{path} is not a file of weights, or would run code when opened") from error
    except (SafetensorError, *_GARBAGE) as error:
        raise DeixisError(f"{path} cannot be read; it is cut off or not a file of weights") from error
    for name in ("state_dict", "model", "module"):
        if isinstance(holds, dict) and isinstance(holds.get(name), dict):
            holds = holds[name]
            break
    if not isinstance(holds, dict) or not holds or not all(isinstance(v, Tensor) for v in holds.values()):
        raise DeixisError(f"{path} holds no table of tensors")
    return {str(key): value for key, value in holds.items()}


# --- tower files of our own ------------------------------------------------------------------------------------------


def save_tower(tower: Any, path: Path) -> None:
    """Write a tower's config, weights and tokenizer to one safetensors file, which may then be any tower's place.

    tower: a FrozenTower with a ``config`` dataclass; its place is left out of the file.
    """
    facts = {
        "format": TOWER_FORMAT,
        "kind": type(tower).__name__,
        "config": {**dataclasses.asdict(tower.config), "place": ""},
    }
    tensors = {f"body.{key}": value.detach().cpu().clone() for key, value in tower.module.state_dict().items()}
    tensors[_TOKENIZER] = tokenizer_bytes(tower.tokenizer)
    beside = path.with_name(f".{path.name}.part")
    try:
        save_file({k: v.contiguous() for k, v in tensors.items()}, beside, metadata={"deixis_tower": json.dumps(facts)})
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def tower_facts(path: Path) -> dict[str, Any] | None:
    """kind and config of a tower file that ``save_tower`` wrote; None for any other file."""
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        facts = json.loads(header.get("deixis_tower", "null"))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise DeixisError(f"{path} is not a readable safetensors file; it is cut off or of another kind") from error
    if facts is None:
        return None
    if not isinstance(facts, dict) or facts.get("format") != TOWER_FORMAT or not isinstance(facts.get("config"), dict):
        raise DeixisError(f"{path} is a tower file of another format; this deixis reads format {TOWER_FORMAT}")
    return facts


def read_own(path: Path, kind: str, config: Any) -> TowerWeights | None:
    """What ``save_tower`` wrote; None where the file is not of ours.

    Raises DeixisError for a tower of another kind, or of another config than ``config`` (places aside).
    """
    facts = tower_facts(path)
    if facts is None:
        return None
    if facts.get("kind") != kind:
        raise DeixisError(f"{path} holds a tower of kind {facts.get('kind')}, expected {kind}")
    wanted = json.loads(json.dumps({**dataclasses.asdict(config), "place": ""}))
    for name in sorted(wanted.keys() | facts["config"].keys()):
        here, there = wanted.get(name), facts["config"].get(name)
        if here != there:
            raise DeixisError(f"{path} holds a tower with {name} {there}, expected {here}")
    stored = read_tensors(path)
    tokenizer = tokenizer_of(stored.pop(_TOKENIZER)) if _TOKENIZER in stored else None
    return TowerWeights({key_of_today(key).removeprefix("body."): value for key, value in stored.items()}, tokenizer)
