"""Configs: dataclasses from JSON and from text (``--set``), and back to JSON."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deixis.types import DeixisError


def apply_overrides(overrides: Mapping[str, str], **configs: Any) -> dict[str, Any]:
    """The frozen dataclasses ``configs`` with the named fields replaced, by the same names.

    ``apply_overrides({"model.queries": "10"}, model=..., train=...)["model"].queries == 10``. Fields of nested
    dataclasses are reached by further dots. The text is read by the field's type: numbers, bool (true/false), text,
    Path, Literal, "none" where None is allowed, tuples with commas. Raises DeixisError for an unknown field (with the
    list of those known) and for text that does not read as the type.
    """
    for key, text in overrides.items():
        section, _, field = key.partition(".")
        if section not in configs or not field:
            known = [name for part, config in configs.items() for name in field_names(config, f"{part}.")]
            raise DeixisError(f"unknown field {key!r}; known: {', '.join(known)}")
        configs[section] = _replaced(configs[section], field, text, f"{section}.")
    return configs


def field_names(config: Any, prefix: str = "") -> list[str]:
    """The settable fields of a dataclass, those of nested dataclasses with dots."""
    names = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        nested = dataclasses.is_dataclass(value)
        names += field_names(value, f"{prefix}{field.name}.") if nested else [prefix + field.name]
    return names


def _replaced(config: Any, field: str, text: str, prefix: str) -> Any:
    name, _, rest = field.partition(".")
    known = {f.name for f in dataclasses.fields(config)}
    nested = name in known and dataclasses.is_dataclass(getattr(config, name))
    if name not in known or bool(rest) != nested:
        raise DeixisError(f"unknown field '{prefix}{field}'; known: {', '.join(field_names(config, prefix))}")
    if nested:
        return dataclasses.replace(config, **{name: _replaced(getattr(config, name), rest, text, f"{prefix}{name}.")})
    hint = typing.get_type_hints(type(config))[name]
    try:
        value = parse_value(text, hint)
    except ValueError as error:
        wanted = getattr(hint, "__name__", str(hint)) if not typing.get_args(hint) else str(hint)
        raise DeixisError(f"{prefix}{name} must be {wanted}, got {text!r}") from error
    return dataclasses.replace(config, **{name: value})


def parse_value(text: str, hint: Any) -> Any:
    """``text`` as a value of the type ``hint``; ValueError where it is none."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if type(None) in inner and text.lower() == "none":
            return None
        return _first_that_reads(text, [kind for kind in inner if kind is not type(None)])
    if origin is typing.Literal:
        return _first_that_reads(text, inner, read=_as_literal)
    if origin is tuple:
        items = [item for item in text.strip("()[] ").split(",") if item.strip()]
        kinds = [inner[0]] * len(items) if inner[-1] is Ellipsis else list(inner)
        if len(kinds) != len(items):
            raise ValueError(f"{len(kinds)} values wanted, got {len(items)}")
        return tuple(parse_value(item.strip(), kind) for item, kind in zip(items, kinds, strict=True))
    if hint is bool:
        return {"true": True, "false": False}[text.lower()] if text.lower() in ("true", "false") else _refuse(text)
    if hint is int:
        return int(text.replace("_", ""))
    if hint in (float, str, Path):
        return hint(text)
    raise ValueError(f"a value of type {hint} cannot be given as text")


def _refuse(text: str) -> Any:
    raise ValueError(text)


def _as_literal(text: str, value: Any) -> Any:
    return value if text == str(value) else _refuse(text)


def _first_that_reads(text: str, kinds: Any, read: Callable[[str, Any], Any] = parse_value) -> Any:
    for kind in kinds:
        try:
            return read(text, kind)
        except ValueError:
            continue
    raise ValueError(text)


def to_plain(value: Any) -> Any:
    """A config as JSON values: dataclasses as dicts, tuples as lists, everything unknown as its text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


LARGEST_NUMBER = 1 << 20  # our choice: no size, count or rate in a config comes near it, so a larger one lies


def some_of(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def config_from(kind: type, values: Any, where: str) -> Any:
    """A config dataclass from its JSON: unknown fields, wrong types and absurd numbers raise DeixisError."""
    if not isinstance(values, dict):
        raise DeixisError(f"{where}: expected the fields of {kind.__name__}, got {type(values).__name__}")
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind) if field.init]
    unknown = sorted(values.keys() - set(names))
    if unknown:
        raise DeixisError(f"{where}: {kind.__name__} has no {some_of(unknown)}; it has {', '.join(names)}")
    made = {name: _value(hints[name], value, f"{where}: {kind.__name__}.{name}") for name, value in values.items()}
    try:
        return kind(**made)
    except TypeError as error:
        raise DeixisError(f"{where}: {error}") from error


def check_bounds(config: Any, where: str) -> None:
    """Raise DeixisError where a number lies outside the bounds of its field (``bounded``), nested configs included.

    Widths, heads and strides that no tensor shows would otherwise fail late, while the system is used.
    """
    for field in dataclasses.fields(config):
        given = getattr(config, field.name)
        if dataclasses.is_dataclass(given):
            check_bounds(given, where)
            continue
        least, most = bounds_of(type(config), field.name)
        if least is None:  # unmarked: whole numbers alone have a bound
            numbers: list[int | float] = [n for n in _numbers(given) if isinstance(n, int)]
            least = min([1, *(n for n in _numbers(field.default) if isinstance(n, int))])
        else:
            numbers = list(_numbers(given))
        if any(not (least <= n and (most is None or n <= most)) for n in numbers):
            span = f"{least:g} or more" if most is None else f"{least:g}..{most:g}"
            raise DeixisError(f"{where}: its config states {field.name} {given}, expected {span}")


def bounds_of(kind: type, name: str) -> tuple[float | None, float | None]:
    """(least, most) of a field, as it or the same field of a base is marked; (None, None) for an unmarked one."""
    for base in kind.__mro__:
        field = getattr(base, "__dataclass_fields__", {}).get(name)
        if field is not None and "least" in field.metadata:
            return field.metadata["least"], field.metadata["most"]
    return None, None


def _numbers(value: Any) -> Iterator[int | float]:
    if isinstance(value, tuple | list):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def _value(hint: Any, value: Any, where: str) -> Any:
    """A JSON value as the type that a config's field is annotated with."""
    if dataclasses.is_dataclass(hint):
        return config_from(typing.cast(type, hint), value, where)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        return _value(next(a for a in inner if a is not type(None)), value, where)
    if origin is typing.Literal and value in inner:
        return value
    if origin in (tuple, list) and isinstance(value, list):
        each = [inner[0]] * len(value) if origin is list or inner[-1:] == (Ellipsis,) else list(inner)
        if len(each) == len(value):
            return origin(_value(e, v, where) for e, v in zip(each, value, strict=True))
    if origin is dict and isinstance(value, dict):
        return {key: _value(inner[1], v, where) for key, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_NUMBER:
        value = float(value)
    if type(value) is hint and not (isinstance(value, int | float) and not abs(value) <= LARGEST_NUMBER):
        return value
    raise DeixisError(f"{where} must be {getattr(hint, '__name__', hint)}, got {value!r:.60}")
