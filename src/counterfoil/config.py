"""The configuration: one TOML file, the environment over it, checked whole before anything starts.

The file is the one at `--config`, else at $COUNTERFOIL_CONFIG, else ./counterfoil.toml. The environment's
`COUNTERFOIL_GATEWAY__PORT=9000` stands over `port` in `[gateway]`; a table or a list is given as JSON. Each package
defines its own settings; here they are put together, read, and checked against one another.

What can't be used raises SettingsInvalid with one line: where it came from, the key, what was found and what was
expected. A value is named only when it is a number or a truth value at a key that holds no secret (promise P6).
"""

from __future__ import annotations

import datetime
import difflib
import json
import math
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from counterfoil.console.settings import ConsoleSettings, is_loopback
from counterfoil.contract.limits import Limits
from counterfoil.destinations.settings import STORE_SCHEMES, DeltaSettings, DestinationSettings, is_store_url
from counterfoil.errors import SettingsInvalid
from counterfoil.gateway.settings import GatewaySettings
from counterfoil.ledger.settings import LedgerSettings
from counterfoil.pipeline.settings import PipelineSettings
from counterfoil.queue.settings import QueueSettings
from counterfoil.settings_tree import environment_names, expected_at, keys_at
from counterfoil.sources import Sources, SourceSettings

FILE_NAME = "counterfoil.toml"
FILE_VARIABLE = "COUNTERFOIL_CONFIG"
PREFIX = "COUNTERFOIL_"
OTHER_VARIABLES = frozenset({FILE_VARIABLE, "COUNTERFOIL_FAILPOINTS"})
"""Names with our prefix that are no settings."""

DEFAULT_DESTINATION = "lake"
STORE_PLACE = re.compile(r"[^/@?#]+(@[^/@:?#]+)?/[^@?#]+")
"""Bucket, for Azure with its account, and a prefix."""


class Settings(BaseModel):
    """Everything that can be set; paths are absolute once it was read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_dir: Path = Field(
        Path("data"), description="Directory of queue, ledger and lake; relative to the configuration file."
    )
    gateway: GatewaySettings = Field(default_factory=GatewaySettings)
    console: ConsoleSettings = Field(default_factory=ConsoleSettings)
    limits: Limits = Field(default_factory=Limits)
    queue: QueueSettings = Field(default_factory=QueueSettings)
    ledger: LedgerSettings = Field(default_factory=LedgerSettings)
    pipeline: PipelineSettings = Field(default_factory=PipelineSettings)
    sources: tuple[SourceSettings, ...] = Field(default=(), description="Senders of events.")
    destinations: tuple[DestinationSettings, ...] = Field(
        default=(), description="Where rows go; absent: one Delta table named lake in the data directory."
    )


def load_settings(path: Path | None = None) -> Settings:
    """The configuration of `path`, or of where it is found; raises SettingsInvalid.

    Without a file, and none named, the environment alone may hold it.
    """
    file = find_file(path)
    if file is None:
        if f"{PREFIX}SOURCES" not in os.environ:
            raise SettingsInvalid(f"{FILE_NAME}: not found here; `counterfoil init` makes one, --config names another")
        return read_settings("", Path.cwd() / FILE_NAME)
    try:
        text = file.read_bytes().decode()
    except UnicodeDecodeError:
        raise SettingsInvalid(f"{file}: expected UTF-8") from None
    except OSError as error:
        raise SettingsInvalid(f"{file}: can't be read: {error.strerror}") from None
    return read_settings(text, file)


def find_file(path: Path | None = None) -> Path | None:
    """The configuration file: `path`, else $COUNTERFOIL_CONFIG, else ./counterfoil.toml if it is there."""
    if path is not None:
        return path
    if named := os.environ.get(FILE_VARIABLE):
        return Path(named)
    here = Path(FILE_NAME)
    return here if here.exists() else None


def read_settings(text: str, file: Path) -> Settings:
    """The configuration that `text` is, as read from `file`, with the environment over it; raises SettingsInvalid."""
    try:
        in_file = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsInvalid(f"{file}: expected TOML: {error}") from None
    reading = _Reading(file, in_file, _read_environment())
    settings = _with_absolute_paths(reading.settings(), file.absolute().parent)
    for key, expectation in disagreements(settings):
        raise SettingsInvalid(f"{key} ({reading.origin(key)}): {expectation}")
    try:
        Sources(settings.sources, settings.limits, [destination.name for destination in settings.destinations])
    except SettingsInvalid as error:
        key, _, expectation = str(error).partition(": expected ")
        raise SettingsInvalid(f"{key} ({reading.origin(key)}): expected {expectation}") from None
    return settings


def disagreements(settings: Settings) -> Iterator[tuple[str, str]]:
    """What each package can't see by itself: the key of a value that doesn't fit the others, and what was expected."""
    if not settings.sources:
        yield "sources", "expected at least one [[sources]]; `counterfoil source add NAME` adds one"
    yield from _repeated("name", [destination.name for destination in settings.destinations])
    yield from _repeated(
        "path", [one.path if isinstance(one, DeltaSettings) else None for one in settings.destinations]
    )
    for index, one in enumerate(settings.destinations):
        if isinstance(one, DeltaSettings):
            yield from _misplaced(f"destinations[{index}]", one)
    gateway, console = settings.gateway, settings.console
    if gateway.tls_cert and not gateway.tls_key:
        yield "gateway.tls_key", "expected a path, because gateway.tls_cert is set"
    if gateway.tls_key and not gateway.tls_cert:
        yield "gateway.tls_cert", "expected a path, because gateway.tls_key is set"
    if gateway.port == console.port and _share_addresses(gateway.host, console.host):
        yield "console.port", "expected another port than gateway.port"
    if not console.password_sha256 and not is_loopback(console.host):
        yield (
            "console.password_sha256",
            "expected a hash, because console.host is not loopback; `counterfoil password` makes one",
        )
    if gateway.bodies_bytes_max < settings.limits.body_bytes_max:
        yield "gateway.bodies_bytes_max", "expected at least limits.body_bytes_max"


def _misplaced(key: str, table: DeltaSettings) -> Iterator[tuple[str, str]]:
    if is_store_url(table.path):
        scheme, _, place = table.path.partition("://")
        if scheme not in STORE_SCHEMES:
            yield f"{key}.path", f"expected a directory, or a URL of {', '.join(STORE_SCHEMES)}"
        elif not STORE_PLACE.fullmatch(place):
            yield f"{key}.path", f"expected {scheme}://bucket/prefix; what is secret belongs into storage_options"
    elif table.storage_options:
        yield f"{key}.storage_options", "expected none, because path is a directory of this machine"


def _repeated(field: str, values: Sequence[str | None]) -> Iterator[tuple[str, str]]:
    for index, value in enumerate(values):
        if value is not None and value in values[:index]:
            first = values.index(value)
            yield f"destinations[{index}].{field}", f"expected one of its own, found the one of destinations[{first}]"


def _share_addresses(one: str, other: str) -> bool:
    return one == other or not {"0.0.0.0", "::", ""}.isdisjoint({one, other})  # noqa: S104 (compared, not bound)


def _with_absolute_paths(settings: Settings, directory: Path) -> Settings:
    """The same with every path made absolute, and with a destination when none was set."""

    def absolute(path: Path | None) -> Path | None:
        return None if path in (None, Path()) else directory / path.expanduser()

    data_dir = directory / settings.data_dir.expanduser()
    gateway = settings.gateway.model_copy(
        update={"tls_cert": absolute(settings.gateway.tls_cert), "tls_key": absolute(settings.gateway.tls_key)}
    )
    destinations = settings.destinations or (DeltaSettings(name=DEFAULT_DESTINATION),)
    placed = tuple(_placed(destination, directory, data_dir) for destination in destinations)
    return settings.model_copy(update={"data_dir": data_dir, "gateway": gateway, "destinations": placed})


def _placed(destination: DestinationSettings, directory: Path, data_dir: Path) -> DestinationSettings:
    if not isinstance(destination, DeltaSettings):
        return destination
    if "path" not in destination.model_fields_set:
        return destination.model_copy(update={"path": str(data_dir / "lake")})
    if is_store_url(destination.path):
        return destination
    return destination.model_copy(update={"path": str(directory / Path(destination.path).expanduser())})


class _Keys(Settings, BaseSettings):
    """What pydantic-settings needs to know to read the environment; never made."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, strict=True
    )


_NAMES = environment_names(Settings, PREFIX)


def _read_environment() -> dict[str, Any]:
    """What the environment sets, nested as in the file; raises SettingsInvalid for a name that is no setting's."""
    for name in sorted(os.environ):
        upper = name.upper()
        if upper.startswith(PREFIX) and upper not in OTHER_VARIABLES:
            if upper not in _NAMES:
                raise SettingsInvalid(f"{name} (from the environment): no such setting{_resembling(upper, _NAMES)}")
            if _NAMES[upper] and not _is_json(os.environ[name]):
                raise SettingsInvalid(f"{name} (from the environment): expected JSON")
    read: dict[str, Any] = EnvSettingsSource(_Keys, case_sensitive=False)()
    return read


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


class _Reading:
    """One reading of a file and the environment over it, which knows where each key came from."""

    def __init__(self, file: Path, in_file: dict[str, Any], in_environment: dict[str, Any]) -> None:
        self._file = file
        self._in_environment = in_environment
        self._merged = _merge(in_file, in_environment)

    def settings(self) -> Settings:
        for path, value in _leaves(self._merged, ()):
            # JSON has no dates and no infinities; strict validation must not meet them as texts.
            if isinstance(value, datetime.date | datetime.time) or value in (math.inf, -math.inf) or value != value:
                raise SettingsInvalid(self._line(path, f"expected {expected_at(Settings, path)}"))
        try:
            # As JSON, because strict JSON takes a text for a path and a list for a tuple, and "9000" for no number.
            return Settings.model_validate_json(json.dumps(self._merged, default=str), strict=True)
        except ValidationError as error:
            raise SettingsInvalid(self._first_of(error)) from None

    def origin(self, key: str) -> str:
        """From where the value of a key is, in words."""
        top, _, rest = key.partition(".")
        section = self._in_environment.get(top.partition("[")[0])
        is_in_environment = section is not None and (not isinstance(section, dict) or rest in section)
        return "from the environment" if is_in_environment else f"from {self._file}"

    def _first_of(self, error: ValidationError) -> str:
        """The error that says most, as one line: a wrong key, else the one that got furthest into the value."""
        found = [(self._path(part["loc"], part["type"]), part["type"]) for part in error.errors(include_url=False)]
        path, kind = max(found, key=lambda entry: (entry[1] == "extra_forbidden", len(entry[0])))
        if kind == "extra_forbidden":
            key, known = str(path[-1]), keys_at(Settings, path[:-1])
            advice = " in a table of this type" if key in known else _resembling(key, known)
            return f"{_key(path)} ({self.origin(_key(path))}): no such key{advice}"
        return self._line(path, f"expected {expected_at(Settings, path)}")

    def _path(self, loc: Sequence[str | int], kind: str) -> tuple[str | int, ...]:
        """The place in the file that pydantic means: without the names it gives to alternatives of a type."""
        path: list[str | int] = []
        value: Any = self._merged
        for part in loc:
            if part in _places(value):
                value = value[part]
                path.append(part)
        if kind in ("union_tag_invalid", "union_tag_not_found"):
            return (*path, "type")
        return (*path, loc[-1]) if kind == "missing" else tuple(path)

    def _line(self, path: Sequence[str | int], expectation: str) -> str:
        key, value = _key(path), _at(self._merged, path)
        if _may_be_shown(path, value):
            return f"{key} = {json.dumps(value)} ({self.origin(key)}): {expectation}"
        found = _FOUND.get(type(value), "something else")
        found = "another" if found in expectation else found
        return f"{key} ({self.origin(key)}): {expectation}, found {found}"


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _leaves(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _leaves(inner, (*path, index))
    else:
        yield path, value


def _places(value: Any) -> range | dict[str, Any]:
    """What may stand in brackets behind a value."""
    return value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)


def _at(value: Any, path: Sequence[str | int]) -> Any:
    for part in path:
        value = value[part] if part in _places(value) else None
    return value


def _key(path: Sequence[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def _may_be_shown(path: Sequence[str | int], value: Any) -> bool:
    """Whether the line may name the value: a number or a truth value, at a key that holds no secret."""
    return isinstance(value, int | float) and not any(word in str(part) for part in path for word in _SECRET)


_SECRET = ("token", "secret", "password", "dsn", "url", "storage_options")
"""Words in the keys whose values are secrets or hold one."""


_FOUND: dict[type, str] = {
    type(None): "none", str: "a text", int: "a number", float: "a number", bool: "true or false", list: "a list",
    dict: "a table",
}  # fmt: skip


def _resembling(name: str, known: Sequence[str] | Mapping[str, bool]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]}?" if near else ""
