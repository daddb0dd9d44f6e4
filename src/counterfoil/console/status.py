"""What the console shows, as facts; counts and positions alone, nothing of a row (promise P6)."""

from __future__ import annotations

import msgspec

from counterfoil.children import ChildStatus
from counterfoil.console.disk import DiskFacts


class SourceStatus(msgspec.Struct, frozen=True):
    """What became of the rows of a source: accepted = new + duplicate + conflict + blocked + test."""

    name: str
    accepted: int
    new: int
    duplicate: int
    conflict: int
    blocked: int
    test: int


class DestinationStatus(msgspec.Struct, frozen=True):
    """How far a destination is: routed = delivered + dead + skipped + erased + pending."""

    name: str
    routed: int
    delivered: int
    dead: int
    pending: int
    oldest_pending_seconds: float
    """How long ago the oldest of these was settled; 0 when none is pending."""
    skipped: int
    """Rows that retention removed before it took them, while it was not in the configuration."""
    erased: int
    """Rows that were erased, whether it had taken them or not."""
    cursor: int
    """The last group that is delivered; 0 is none."""
    state: str
    """`running`, `down: …`, `refused: …` with the reason, or `unknown` while the pipeline doesn't run."""


class WriterStatus(msgspec.Struct, frozen=True):
    """How far a writer's directory is written, and how far settled."""

    number: int
    directory: str
    written: str
    """The place up to which everything is durable, as `segment@offset`; or why that can't be read."""
    settled: str | None
    """The place at which settle reads next; None before it has read anything."""


class Status(msgspec.Struct, frozen=True):
    """The state of the whole server at one time."""

    version: str
    at_ms: int
    not_ready: str | None
    """Why no row can be taken now; None when it can."""
    last_group: int
    damaged_frames: int
    processes: tuple[ChildStatus, ...]
    sources: tuple[SourceStatus, ...]
    destinations: tuple[DestinationStatus, ...]
    writers: tuple[WriterStatus, ...]
    ledger: str | None = None
    """Why the counts are missing; None when they are there."""
    disk: DiskFacts | None = None
    """None when it can't be looked at."""
    oldest_group: int = 1
    """The oldest group that is kept."""
    oldest_kept_ms: int | None = None
    """When that was settled; None when no group is kept."""
