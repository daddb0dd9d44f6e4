"""What a worker did, counted in plain numbers and handed to the metrics once a second.

Metrics are files that processes share: a request's own would cost it as much as its judging.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Protocol

import msgspec

from counterfoil.telemetry.metrics import REQUEST_SECONDS


class GatewayObserver(Protocol):
    """Who makes metrics of it; called about once a second, and at the end."""

    def requests_answered(self, path: str, status: int, request_count: int) -> None:
        """So many requests of a path got this status."""
        ...

    def requests_took(self, path: str, bucket_counts: Sequence[int], seconds: float, body_bytes: int) -> None:
        """How long requests of a path took, by the buckets of REQUEST_SECONDS and one for what took longer (each
        counts its own alone), and in all; and the bytes of their bodies as they came."""
        ...

    def rows_answered(self, source: str, accepted: int, invalid: int, queue_failed: int) -> None:
        """So many rows of a source were answered so; rows of a refused request are in none."""
        ...


class PathCounts(msgspec.Struct):
    """The requests of a path."""

    statuses: dict[int, int] = msgspec.field(default_factory=dict)
    bucket_counts: list[int] = msgspec.field(default_factory=lambda: [0] * (len(REQUEST_SECONDS) + 1))
    seconds: float = 0.0
    body_bytes: int = 0


class RowCounts(msgspec.Struct):
    """The rows of a source."""

    accepted: int = 0
    invalid: int = 0
    queue_failed: int = 0


class GatewayCounts:
    """What happened since it was handed over last."""

    def __init__(self) -> None:
        self._paths: dict[str, PathCounts] = {}
        self._rows: dict[str, RowCounts] = {}

    def add_request(self, path: str, status: int, seconds: float, body_bytes: int) -> None:
        counts = self._paths.get(path)
        if counts is None:
            counts = self._paths[path] = PathCounts()
        counts.statuses[status] = counts.statuses.get(status, 0) + 1
        counts.bucket_counts[bisect_left(REQUEST_SECONDS, seconds)] += 1
        counts.seconds += seconds
        counts.body_bytes += body_bytes

    def add_rows(self, source: str, accepted: int, invalid: int = 0, queue_failed: int = 0) -> None:
        counts = self._rows.get(source)
        if counts is None:
            counts = self._rows[source] = RowCounts()
        counts.accepted += accepted
        counts.invalid += invalid
        counts.queue_failed += queue_failed

    def hand_to(self, observer: GatewayObserver) -> None:
        """Hand everything over, and begin anew."""
        paths, self._paths = self._paths, {}
        rows, self._rows = self._rows, {}
        for path, counts in paths.items():
            for status, request_count in counts.statuses.items():
                observer.requests_answered(path, status, request_count)
            observer.requests_took(path, counts.bucket_counts, counts.seconds, counts.body_bytes)
        for source, row in rows.items():
            observer.rows_answered(source, row.accepted, row.invalid, row.queue_failed)
