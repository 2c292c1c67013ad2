"""Every known checkpoint, and how one is written and read.

A checkpoint is one safetensors file. Its header's metadata holds one JSON under ``deixis``: format, system, config;
the system is rebuilt from it and loaded strictly. Rows stored as int8 lie under ``KEY.int8`` with ``KEY.scale`` (one a
row); other tensors under their own key. A file is checked (header, sizes, shapes) before anything of its size is
allocated, and nothing in it is ever executed. Frozen towers that have a name are not in it (encoders/frozen.py): they
are read from their own place after it.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import struct
import typing
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import get_ident
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from deixis import systems
from deixis.config import check_bounds, config_from, some_of
from deixis.encoders.frozen import fill_towers
from deixis.old_keys import fields_of_today, key_of_today
from deixis.types import DeixisError, reason_of

FORMAT = 1
IMPORTED = ("soc", "soc_plus_plus")  # systems whose authors' checkpoints `deixis weights import` reads
MODEL_FILE = "model.safetensors"  # what a training run leaves
ASSETS = Path(__file__).parent / "assets"
DEMO_FILM = ASSETS / "demo" / "lucia.mp4"  # DAVIS 2016, CC BY 4.0; its licence lies beside it
DEMO_EXPRESSIONS = ("the woman", "the bench", "a brown dog")  # there is no dog
LARGEST_HEADER = 100_000_000  # bytes; safetensors' own bound (read)
EXTRA = "_extra_state"  # PyTorch's key for what a module keeps beside its tensors: here bytes, as uint8 of any length
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One checkpoint that the package names. place: where it lies, a path.  sha256: of the file, "" where unknown."""

    name: str
    preset: str
    place: Path
    sha256: str
    licence: str
    language: str | None = None  # of the sentences that it takes


KNOWN: dict[str, Checkpoint] = {
    checkpoint.name: checkpoint
    for checkpoint in (
        Checkpoint(
            name="light",
            preset="light",
            place=ASSETS / "light.safetensors",
            sha256="7e4f709abe752f7205b2d16c974bef9481e749343c1ff36d5e9e5e8d1edb9139",
            licence="Apache-2.0 (its parts: see the card)",
            language="English",
        ),
    )
}


def load(model: str | Path, device: torch.device | str = "cpu") -> nn.Module:
    """Load a system, in evaluation mode.

    Args:
        model: Name of a checkpoint that `deixis models` lists, name of a `_debug` preset (random weights), or path of a
            checkpoint file.
        device: Device that the weights are moved to.

    Returns:
        The system: a module with `config`, `encode` and `decode`.

    Raises:
        DeixisError: For an unknown name, a file that is missing, cut off, hostile or of another kind, weights that do
            not fit the system that the file names, and frozen towers that are not where it says.

    Example:
        >>> import deixis
        >>> system = deixis.load("light")
        >>> type(system).__name__, system.training
        ('Light', False)
    """
    path = find(model)
    if path is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same random weights every time
            return systems.PRESETS[str(model)]().to(device).eval()
    return fill_towers(_read(path), path.parent).to(device).eval()


def find(model: str | Path) -> Path | None:
    """Find the file behind a model's name.

    Args:
        model: As for `load`.

    Returns:
        The path, or None for a `_debug` preset, which has no file.

    Raises:
        DeixisError: For an unknown name or a missing file.

    Example:
        >>> from deixis.weights import find
        >>> find("light").suffix
        '.safetensors'
    """
    name = str(model)
    if name in KNOWN:
        place = KNOWN[name].place
        if not place.is_file():
            raise DeixisError(
                f"the checkpoint of {name!r} is not at {place}; give another --model, or install it there"
            )
        return place
    if name in systems.PRESETS and name.endswith("_debug"):
        return None
    path = Path(model)
    if path.is_file():
        return path
    if path.suffix or len(path.parts) > 1:
        raise DeixisError(f"no such checkpoint file: {path}")
    raise DeixisError(_no_weights(name))


def _no_weights(name: str) -> str:
    """What to say of a name that no weights lie here for."""
    if name in systems.PRESETS or name in systems.SYSTEMS:
        system = next((s for s in sorted(systems.SYSTEMS, key=len, reverse=True) if name.startswith(s)), name)
        ways = f"train them with `deixis train RECIPE -o OUT` (docs/systems), and give --model OUT/{MODEL_FILE}"
        if system in IMPORTED:
            file = f"{name}.safetensors"
            ways = (
                f"import the authors' with `deixis weights import FILE.pth --system {system} -o {file}` and give"
                f" --model {file}, or {ways}"
            )
        return f"{name!r} has no weights here; {ways}"
    close = difflib.get_close_matches(name, [*KNOWN, *systems.PRESETS], 1, 0.75)
    meant = f" (did you mean {close[0]!r}?)" if close else ""
    known = ", ".join(KNOWN)
    return f"unknown model {name!r}{meant}; expected {known} or a .safetensors file; `deixis models` lists all names"


def describe(model: str | Path) -> dict[str, str | None]:
    """Describe a model for records of results.

    Args:
        model: As for `load`.

    Returns:
        `name`, `checkpoint` (the file's name) and `sha256` of the file; the last two are None for a `_debug` preset.

    Raises:
        DeixisError: As `find`.

    Example:
        >>> from deixis.weights import describe
        >>> describe("soc_debug")
        {'name': 'soc_debug', 'checkpoint': None, 'sha256': None}
    """
    path = find(model)
    return {
        "name": path.stem if path and str(model) not in KNOWN else str(model),
        "checkpoint": path.name if path else None,
        "sha256": sha256(path) if path else None,
    }


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save(
    system: nn.Module,
    path: Path,
    *,
    int8: Sequence[str] = (),
    half: Sequence[str] = (),
    card: Mapping[str, Any] | None = None,
) -> None:
    """Write a system's config and weights to one file, in one step.

    Args:
        system: A system whose class is listed in `deixis.systems`.
        path: The file, ending in .safetensors.
        int8: Prefixes of keys whose floating tensors of two or more axes are stored as int8, with one scale a row
            (first axis). The largest error is half a 127th of the row's largest number.
        half: Prefixes of keys whose other floating tensors are stored as fp16.
        card: Further facts, written beside the checkpoint as JSON together with the config.

    Raises:
        DeixisError: For a system that is not listed.

    Example:
        >>> from pathlib import Path
        >>> import deixis
        >>> from deixis.weights import save
        >>> save(deixis.load("soc_debug"), Path("soc.safetensors"))
        >>> type(deixis.load("soc.safetensors")).__name__
        'Soc'
    """
    tensors: dict[str, Tensor] = {}
    for key, value in system.state_dict().items():
        tensor = value.detach().cpu().contiguous().clone()
        floating = tensor.is_floating_point()
        if floating and tensor.ndim >= 2 and key.startswith(tuple(int8)):
            tensors[f"{key}.int8"], tensors[f"{key}.scale"] = quantise(tensor)
        else:
            tensors[key] = tensor.half() if floating and key.startswith(tuple(half)) else tensor
    facts = {
        "format": FORMAT,
        "system": _system_name(system),
        "config": dataclasses.asdict(typing.cast(Any, system.config)),
    }
    beside = path.with_name(f".{path.name}.part")
    try:
        save_file(tensors, beside, metadata={"deixis": json.dumps(facts)})
        os.replace(beside, path)
        if card is not None:
            beside.write_text(json.dumps({**facts, **card}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(beside, path.with_suffix(".json"))
    finally:
        beside.unlink(missing_ok=True)


def quantise(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """(int8 of the same shape, fp32 scale a row of the first axis): tensor is about int8 * scale."""
    rows = tensor.float().flatten(1)
    scale = rows.abs().amax(1).clamp_min(1e-12) / 127
    return (rows / scale[:, None]).round().to(torch.int8).view(tensor.shape), scale


def restore(int8: Tensor, scale: Tensor) -> Tensor:
    """The fp32 tensor of ``quantise``'s pair."""
    return int8.float() * scale.float().view(-1, *[1] * (int8.ndim - 1))


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """(the JSON under ``deixis``, {key: {dtype, shape, data_offsets}}) of a checkpoint; reads no tensor.

    Raises DeixisError unless every length in the header agrees with every other and with the file's size.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            if len(start) < 8:
                raise DeixisError(f"{path} is not a checkpoint: it holds {size} bytes; expected a safetensors file")
            (length,) = struct.unpack("<Q", start)
            if start[:2] in (b"PK", b"\x80\x02"):
                raise DeixisError(f"{path} is a pickle, which may run code; expected a safetensors file, so convert it")
            if length > min(LARGEST_HEADER, size - 8):
                raise DeixisError(f"{path} is not a safetensors file, or is cut off within its header")
            header = json.loads(file.read(length))
    except OSError as error:
        raise DeixisError(f"{path} cannot be read: {reason_of(error)}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, DeixisError):
            raise
        raise DeixisError(f"{path} is not a safetensors file: its header is not JSON") from error
    if not isinstance(header, dict):
        raise DeixisError(f"{path} is not a safetensors file: its header is not an object")
    metadata = header.pop("__metadata__", {})
    _check_entries(path, header, size - 8 - length)
    try:
        facts = json.loads(metadata["deixis"])
        if facts["format"] != FORMAT:
            raise DeixisError(f"{path} has format {facts['format']!r}, this deixis reads {FORMAT}; update deixis")
        if not isinstance(facts["system"], str) or not isinstance(facts["config"], dict):
            raise TypeError("system and config")
    except (KeyError, TypeError, RecursionError, ValueError) as error:  # ValueError: a number of 5000 digits, too
        if isinstance(error, DeixisError):
            raise
        raise DeixisError(
            f"{path} is a safetensors file, but its header does not say which deixis system it is"
        ) from error
    return facts | {"config": fields_of_today(facts["config"])}, header


def _check_entries(path: Path, entries: Mapping[str, Any], room: int) -> None:
    """Raise DeixisError unless the entries tile the file's ``room`` bytes exactly, each as long as its shape says."""
    reached = 0
    try:
        for key, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = entry["data_offsets"]
            count = 1
            for side in entry["shape"]:
                if not isinstance(side, int) or side < 0:
                    raise DeixisError(f"{path}: tensor {key!r} has a shape that cannot be: {entry['shape']}")
                count *= side
            if entry["dtype"] not in _BYTES:
                raise DeixisError(f"{path}: tensor {key!r} has an unknown type {entry['dtype']!r}")
            if begin != reached or end - begin != count * _BYTES[entry["dtype"]]:
                raise DeixisError(f"{path}: tensor {key!r} does not lie where its shape says; the file is damaged")
            reached = end
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DeixisError):
            raise
        raise DeixisError(f"{path} is not a safetensors file: an entry of its header is malformed") from error
    if reached != room:
        raise DeixisError(f"{path} is cut off or overlong: its header states {reached} bytes of weights, {room} follow")


def _read(path: Path) -> nn.Module:
    facts, entries = read_header(path)
    entries = {key_of_today(key): entry for key, entry in entries.items()}
    if facts["system"] not in systems.SYSTEMS:
        known = ", ".join(systems.SYSTEMS)
        raise DeixisError(f"{path} holds a system {facts['system']!r}, unknown here; this deixis has {known}")
    kind, config_kind = systems.SYSTEMS[facts["system"]]
    config = config_from(config_kind, facts["config"], str(path))
    check_bounds(config, str(path))
    _check_fit(path, kind, config, entries)
    try:
        system = kind(config)
        stored = {key_of_today(key): tensor for key, tensor in load_file(path).items()}
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise DeixisError(f"{path} cannot be loaded: {error}") from error
    tensors: dict[str, Tensor] = {}
    for key, tensor in stored.items():
        if key.endswith(".int8"):
            tensors[key.removesuffix(".int8")] = restore(tensor, stored[key.removesuffix(".int8") + ".scale"])
        elif not (key.endswith(".scale") and key.removesuffix(".scale") + ".int8" in stored):
            tensors[key] = tensor
    try:
        system.load_state_dict(tensors)
    except Exception as error:  # bytes that a module reads itself, a tokenizer's say, may fail in any way
        raise DeixisError(f"{path} cannot be loaded: {' '.join(str(error).split())}") from error
    return system


def _check_fit(path: Path, kind: type, config: Any, entries: Mapping[str, Any]) -> None:
    """Raise DeixisError unless the file holds exactly the tensors, in shape, of the system that its config makes.

    The system is built without memory (on PyTorch's meta device), so a lying config allocates nothing.
    """
    here = get_ident()
    most = 2 * len(entries) + 1000  # our choice: room for tensors that are tied, or registered and replaced

    def count(module: nn.Module, name: str, value: Any) -> None:
        nonlocal most
        most -= get_ident() == here  # the hooks are called from other threads too
        if most < 0:  # a lying count of layers would be built for minutes before it is found not to fit
            raise ValueError(f"it states more tensors than the {len(entries)} that the file holds")

    try:
        with ExitStack() as hooks, torch.device("meta"):
            hooks.callback(torch_module.register_module_parameter_registration_hook(count).remove)
            hooks.callback(torch_module.register_module_buffer_registration_hook(count).remove)
            wanted = {key: list(value.shape) for key, value in kind(config).state_dict().items()}
    except (RuntimeError, ValueError, TypeError, ArithmeticError, LookupError) as error:
        raise DeixisError(f"{path}: its config does not make a system ({error})") from error
    found: dict[str, list[int]] = {}
    for key, entry in entries.items():
        base = key.removesuffix(".int8")
        if key.endswith(".int8"):
            rows = entries.get(f"{base}.scale", {}).get("shape")
            if rows != entry["shape"][:1]:
                raise DeixisError(f"{path}: {key!r} needs one scale a row under {base + '.scale'!r}, found {rows}")
        if not (key.endswith(".scale") and key.removesuffix(".scale") + ".int8" in entries):
            found[base] = entry["shape"]
    missing, left = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    bent = sorted(k for k in wanted.keys() & found.keys() if wanted[k] != found[k] and not k.endswith(EXTRA))
    if missing or left or bent:
        parts = [f"missing {some_of(missing)}", f"unexpected {some_of(left)}", f"of another shape {some_of(bent)}"]
        wrong = "; ".join(part for part, keys in zip(parts, (missing, left, bent), strict=True) if keys)
        raise DeixisError(f"{path} does not fit the system that its config describes: {wrong}")


def _system_name(system: nn.Module) -> str:
    for name, (kind, _) in systems.SYSTEMS.items():
        if type(system) is kind:
            return name
    raise DeixisError(f"{type(system).__name__} is not among the systems of deixis: {', '.join(systems.SYSTEMS)}")


S = TypeVar("S", bound=nn.Module)


def system_at(start: str | Path, *kinds: type) -> Any:
    """The system of a checkpoint, by name or file. Raises DeixisError if it is none of ``kinds``."""
    system = load(start)
    if not isinstance(system, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise DeixisError(f"--data start={start} is a checkpoint of {type(system).__name__}, expected one of {wanted}")
    return system


def load_into(system: S, start: str | Path) -> S:
    """``system`` with every tensor, tokenizer and all, as the checkpoint has it. Raises DeixisError for a checkpoint
    of another system, and names the tensors where it does not fit."""
    found, own = system_at(start, type(system)).state_dict(), system.state_dict()
    wrong = misfits(own, found)
    if wrong:
        raise DeixisError(
            f"--data start={start} does not fit this model, at {len(wrong)} tensors: {', '.join(wrong[:5])}; "
            "leave out the --set model.* settings that it was not made with"
        )
    system.load_state_dict(found)
    return system


def misfits(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Keys that only one of the two has, then those of another shape; what modules keep as bytes has any length."""
    bent = [k for k in own.keys() & found.keys() if not k.endswith(EXTRA) and own[k].shape != found[k].shape]
    return [*sorted(own.keys() ^ found.keys()), *sorted(bent)]
