"""Every setting there is, with its key, kind, default, bounds and help, as its package wrote it.

The environment's names, the file that `init` writes, the reference page and what an error says it expected are all made
from this, so that a setting is written once, in its package.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined


class Setting(msgspec.Struct, frozen=True):
    """A key of the configuration."""

    key: str
    """As it is written: `port`."""
    kind: str
    """What a value must be, in words: `a whole number from 1 to 65535`."""
    default: Any
    """None where there is none, or where it is made when the configuration is read."""
    example: Any
    """A value to show: the default, or where that is none one that could be set."""
    is_required: bool
    help: str


class Section(msgspec.Struct, frozen=True):
    """A table of the configuration."""

    name: str
    """As it is written in brackets; empty for the top of the file."""
    is_list: bool
    """Whether it stands in double brackets, once for each."""
    type: str | None
    """The value of its key `type`, where tables of this name are of several kinds."""
    help: str
    settings: tuple[Setting, ...]


def sections(model: type[BaseModel]) -> Iterator[Section]:
    """The tables of a configuration in the order of `model`, the top of the file first."""
    plain = [(name, field) for name, field in model.model_fields.items() if not _models_of(field.annotation)]
    yield Section("", False, None, _first_line(model), tuple(_setting(name, field) for name, field in plain))
    for name, field in model.model_fields.items():
        for inner in _models_of(field.annotation):
            settings = tuple(_setting(key, part) for key, part in inner.model_fields.items())
            kind = inner.model_fields["type"].default if "type" in inner.model_fields else None
            yield Section(name, _is_list(field.annotation), kind, _first_line(inner), settings)


def environment_names(model: type[BaseModel], prefix: str) -> dict[str, bool]:
    """The names that the environment may hold, and for each whether its value is JSON (a table or a list)."""
    names = {}
    for name, field in model.model_fields.items():
        upper = f"{prefix}{name}".upper()
        inner = _models_of(field.annotation)
        names[upper] = bool(inner) or _is_list(field.annotation)
        if inner and not _is_list(field.annotation):
            for key, part in inner[0].model_fields.items():
                names[f"{upper}__{key}".upper()] = _is_list(part.annotation)
    return names


def expected_at(model: type[BaseModel], path: Sequence[str | int]) -> str:
    """What a value at this place of a configuration must be, in words."""
    found = _found_at(model, path)
    return " or ".join(dict.fromkeys(kind_of(annotation, metadata) for annotation, metadata in found))


def keys_at(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """The keys that a table at this place of a configuration may have."""
    tables = [table for annotation, _ in _found_at(model, path) for table in _models_of(annotation)]
    return list(dict.fromkeys(key for table in tables for key in table.model_fields))


def _found_at(model: type[BaseModel], path: Sequence[str | int]) -> list[tuple[Any, Sequence[Any]]]:
    """The types, with what bounds them, that a value at this place may have."""
    found: list[tuple[Any, Sequence[Any]]] = [(model, ())]
    for part in path:
        if isinstance(part, int):
            found = [(_entry_of(annotation), ()) for annotation, _ in found]
        else:
            tables = [table for annotation, _ in found for table in _models_of(annotation)]
            fields = [table.model_fields[part] for table in tables if part in table.model_fields]
            found = [(field.annotation, field.metadata) for field in fields]
    return found


def kind_of(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """What a value of this type must be, in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind_of(arguments[0], (*_flat(arguments[1:]), *metadata))
    if _is_union(annotation):
        return " or ".join(dict.fromkeys(kind_of(part, metadata) for part in arguments if part is not type(None)))
    if origin is Literal:
        return " or ".join(f'"{value}"' for value in arguments)
    if origin is dict:
        return f"a table, each value {kind_of(arguments[1])}"
    if origin is tuple:
        return f"a list, each {kind_of(arguments[0])}"
    if _is_model(annotation):
        return "a table"
    return _KINDS[annotation] + _bounds(metadata)


_KINDS: dict[Any, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path",
}  # fmt: skip


def _bounds(metadata: Iterable[Any]) -> str:
    found = {name: value for part in metadata for name in _BOUNDS if (value := getattr(part, name, None)) is not None}
    match found:
        case {"ge": least, "le": most}:
            return f" from {least} to {most}"
        case {"ge": least}:
            return f" of at least {least}"
        case {"min_length": least, "max_length": most}:
            return f" of {least} to {most} characters"
        case {"pattern": pattern}:
            return f" like {pattern}"
    return ""


_BOUNDS = ("ge", "le", "min_length", "max_length", "pattern")


def _flat(metadata: Iterable[Any]) -> Iterator[Any]:
    for part in metadata:
        yield from part.metadata if isinstance(part, FieldInfo) else (part,)


def _setting(key: str, field: FieldInfo) -> Setting:
    default = {} if field.default_factory is dict else field.get_default(call_default_factory=False)
    default = None if default is PydanticUndefined else str(default) if isinstance(default, Path) else default
    return Setting(
        key=key,
        kind=kind_of(field.annotation, field.metadata),
        default=default,
        example=next(iter(field.examples or ()), "") if default is None else default,
        is_required=field.is_required(),
        help=field.description or "",
    )


def _entry_of(annotation: Any) -> Any:
    """What an entry of a list is."""
    lists = [part for part in _parts(annotation) if get_origin(part) is tuple]
    return get_args(lists[0])[0] if lists else annotation


def _models_of(annotation: Any) -> tuple[type[BaseModel], ...]:
    """The models that a field holds, itself or as the entries of a list."""
    entries = [_entry_of(part) if get_origin(part) is tuple else part for part in _parts(annotation)]
    return tuple(part for entry in entries for part in _parts(entry) if _is_model(part))


def _is_list(annotation: Any) -> bool:
    return any(get_origin(part) is tuple for part in _parts(annotation))


def _parts(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a type; itself when it has none."""
    if get_origin(annotation) is Annotated:
        return _parts(get_args(annotation)[0])
    if _is_union(annotation):
        return tuple(alternative for part in get_args(annotation) for alternative in _parts(part))
    return (annotation,)


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().partition("\n")[0]


def toml_value(value: Any) -> str:
    """A value as it stands behind its key in the configuration."""
    import tomlkit

    item = tomlkit.item(value)
    if isinstance(value, dict):
        # By itself a table would come out as lines below its key.
        item = tomlkit.inline_table()
        item.update(value)
    return str(item.as_string())
