"""Senders: what is known of a source, and which source a token belongs to.

A source is known by its name, and a request by its token, of which only the SHA-256 is kept (promise P6). Several
tokens of a source are valid at once, so that one is rotated without a gap: add the new one, move the senders, take the
old one away. A test token marks its rows as such (contract.md section 9).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Annotated

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from counterfoil.contract.facts import key_prefix
from counterfoil.contract.limits import Limits
from counterfoil.contract.rows import IDENTIFY_EVENT, RowRules
from counterfoil.contract.text import trim
from counterfoil.errors import SettingsInvalid

SOURCE_NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
Sha256Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

SYSTEM_PREFIX = "$"
DAY_MS = 86_400_000


class AllowedEvent(BaseModel):
    """An entry of an allowlist (contract.md section 9)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    event: Annotated[str, Field(min_length=1, max_length=1000)] = Field(description="The event's name.")
    destinations: tuple[str, ...] | None = Field(
        None, description="Destinations it is for; absent: all of them; empty: none."
    )


class SourceSettings(BaseModel):
    """A sender of events."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=SOURCE_NAME)] = Field(
        description="The source's name, which is its identity: lower-case letters, digits, - and _."
    )
    token_sha256: tuple[Sha256Hex, ...] = Field(
        default=(), description="SHA-256 of each token that is valid, in hex; more than one while one is rotated."
    )
    test_token_sha256: tuple[Sha256Hex, ...] = Field(
        default=(), description="The same of tokens whose rows are kept and never delivered."
    )
    max_age_days: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Days that a row's time may lie back; 0 is without end; absent: limits.age_days_max.",
        examples=[7],
    )
    allowed_events: tuple[str | AllowedEvent, ...] | None = Field(
        None,
        description="Events that are delivered; absent: every event, everywhere.",
        examples=[["Sign Up", {"event": "Purchase", "destinations": ["lake"]}]],
    )
    rows_per_second_max: Annotated[int, Field(ge=0)] = Field(0, description="Rows a second; 0 is without limit.")


class Route(msgspec.Struct, frozen=True):
    """Where the rows of an event go."""

    is_allowed: bool
    destinations: tuple[str, ...] | None
    """Names, sorted; None is every destination, and empty none."""


EVERYWHERE = Route(is_allowed=True, destinations=None)
BLOCKED = Route(is_allowed=False, destinations=None)


class Sender(msgspec.Struct, frozen=True):
    """Whom a token belongs to, and what holds for the rows that come with it."""

    source: str
    key_prefix: bytes
    """What precedes a distinctId in the bytes of its key hash."""
    is_test: bool
    rules: RowRules
    """What its rows are judged by."""
    rows_per_second_max: int
    """0 is without limit."""
    allowlist: Mapping[str, Route] | None
    """By the name as `compared`; None lets every event pass everywhere."""

    def route(self, event: str) -> Route:
        """Where an event goes, by its source's allowlist (contract.md section 9)."""
        if self.allowlist is None:
            return EVERYWHERE
        return self.allowlist.get(compared(event), BLOCKED)


class Sources:
    """Every sender by its token; a request that found its sender keeps it, also when they are replaced meanwhile."""

    def __init__(
        self, settings: Sequence[SourceSettings], limits: Limits, destinations: Collection[str] | None = None
    ) -> None:
        """Raises SettingsInvalid; `destinations` are the names there are, None when that isn't known here."""
        self._senders = _senders_by_token(settings, limits, destinations)

    def replace(
        self, settings: Sequence[SourceSettings], limits: Limits, destinations: Collection[str] | None = None
    ) -> None:
        """Put others in their place, all at once. Raises SettingsInvalid, and then everything stays as it is."""
        self._senders = _senders_by_token(settings, limits, destinations)

    def find(self, token: str) -> Sender | None:
        """The sender of a token (trimmed already); None when it is unknown or was revoked."""
        return self._senders.get(hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest())


def compared(event: str) -> str:
    """An event's name as allowlists compare it: trimmed and without regard to case."""
    return trim(event).casefold()


def token_sha256(token: str) -> str:
    """What the settings keep of a token."""
    return hashlib.sha256(trim(token).encode()).hexdigest()


def _senders_by_token(
    settings: Sequence[SourceSettings], limits: Limits, destinations: Collection[str] | None
) -> dict[bytes, Sender]:
    senders: dict[bytes, Sender] = {}
    names: set[str] = set()
    for index, source in enumerate(settings):
        if source.name in names:
            raise SettingsInvalid(f"sources[{index}].name: expected a name that no other source has")
        names.add(source.name)
        for place, digest, sender in _senders_of(source, f"sources[{index}]", limits, destinations):
            if digest in senders:
                raise SettingsInvalid(
                    f"{place}: expected a token of its own, found one of source {senders[digest].source}"
                )
            senders[digest] = sender
    return senders


def _senders_of(
    source: SourceSettings, place: str, limits: Limits, destinations: Collection[str] | None
) -> Iterator[tuple[str, bytes, Sender]]:
    age_days = limits.age_days_max if source.max_age_days is None else source.max_age_days
    live = Sender(
        source=source.name,
        key_prefix=key_prefix(source.name),
        is_test=False,
        rules=RowRules(limits, age_days * DAY_MS or None, 1000 * limits.ahead_seconds_max),
        rows_per_second_max=source.rows_per_second_max,
        allowlist=_allowlist(source, place, destinations),
    )
    test = msgspec.structs.replace(live, is_test=True)
    for key, hashes, sender in (
        ("token_sha256", source.token_sha256, live),
        ("test_token_sha256", source.test_token_sha256, test),
    ):
        for index, digest in enumerate(hashes):
            yield f"{place}.{key}[{index}]", bytes.fromhex(digest), sender


def _allowlist(source: SourceSettings, place: str, destinations: Collection[str] | None) -> dict[str, Route] | None:
    if source.allowed_events is None:
        return None
    routes: dict[str, Route] = {}
    for index, entry in enumerate(source.allowed_events):
        entry_place = f"{place}.allowed_events[{index}]"
        event, names = (entry, None) if isinstance(entry, str) else (entry.event, entry.destinations)
        key = compared(event)
        if not key:
            raise SettingsInvalid(f"{entry_place}: expected an event's name, found nothing but white space")
        if key.startswith(SYSTEM_PREFIX) and key != IDENTIFY_EVENT:
            raise SettingsInvalid(
                f"{entry_place}: expected a name without $ in front, or {IDENTIFY_EVENT}; the others are the system's"
            )
        if key in routes:
            raise SettingsInvalid(f"{entry_place}: expected each event once; case does not count")
        for name in names or ():
            if destinations is not None and name not in destinations:
                raise SettingsInvalid(f"{entry_place}.destinations: expected names of destinations, found {name}")
        routes[key] = Route(is_allowed=True, destinations=None if names is None else tuple(sorted(set(names))))
    return routes


def router(source: SourceSettings) -> Callable[[str], Route]:
    """Where the events of a source go by its allowlist as it is set."""
    routes = _allowlist(source, source.name, None)
    return lambda event: EVERYWHERE if routes is None else routes.get(compared(event), BLOCKED)
