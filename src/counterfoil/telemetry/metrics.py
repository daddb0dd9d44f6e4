"""Metrics: every one that there is, with its name and help, and the observers that packages are handed.

Two kinds:
    - measured: counted by a process as it works, in memory-mapped files that the console adds up. A process that is
      started again goes on in the file of its name, so that counts go on and files don't heap up;
    - booked: read from the ledger when somebody asks, so that they are the books and survive everything.

No label holds anything of a sender's data: sources and destinations are names of the configuration, paths are those
that the API has (promise P6). Nothing that matters hangs on this: a metrics file that can't be used is left out.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import msgspec
import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, values
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

log = structlog.get_logger()

FILE_BYTES = 1024 * 1024
"""What a process's file is given on disk at once. Left to grow, it would be a sparse file, and counting on a full disk
would end the process by SIGBUS."""

PATHS = ("/api/v1/batch", "/api/v1/track", "/api/v1/identify", "/api/v1/openapi", "/api/v1/limits", "/livez", "/readyz")
OTHER_PATH = "other"

REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
FLUSH_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
STEP_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Kind(StrEnum):
    """What kind of number a metric is."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Spec(msgspec.Struct, frozen=True):
    """A metric."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    is_booked: bool = False


def _booked(name: str, kind: Kind, text: str, *labels: str) -> Spec:
    return Spec(name, kind, text, labels, is_booked=True)


REQUESTS = Spec("counterfoil_requests_total", Kind.COUNTER, "Requests by path and status.", ("path", "status"))
REQUEST_TIME = Spec(
    "counterfoil_request_seconds",
    Kind.HISTOGRAM,
    "Seconds from a request's headers to its answer, by path.",
    ("path",),
    REQUEST_SECONDS,
)
BODY_BYTES = Spec("counterfoil_body_bytes_total", Kind.COUNTER, "Bytes of bodies as they came, by path.", ("path",))
ROWS = Spec(
    "counterfoil_rows_total",
    Kind.COUNTER,
    "Rows answered, by source and result: accepted, invalid_event or queue_failed.",
    ("source", "result"),
)
FLUSHES = Spec("counterfoil_flushes_total", Kind.COUNTER, "Flushes of the queue by result: ok or failed.", ("result",))
FLUSH_TIME = Spec("counterfoil_flush_seconds", Kind.HISTOGRAM, "Seconds of a write and flush.", (), FLUSH_SECONDS)
FLUSHED_BYTES = Spec("counterfoil_flushed_bytes_total", Kind.COUNTER, "Bytes that were flushed to the queue.")
FLUSHED_FRAMES = Spec("counterfoil_flushed_frames_total", Kind.COUNTER, "Frames that were flushed to the queue.")
FLUSHED_ROWS = Spec("counterfoil_flushed_rows_total", Kind.COUNTER, "Rows that were flushed to the queue.")
SETTLE_TIME = Spec(
    "counterfoil_settle_seconds", Kind.HISTOGRAM, "Seconds in which a group was settled.", (), STEP_SECONDS
)
COMMITS = Spec(
    "counterfoil_commits_total",
    Kind.COUNTER,
    "Deliveries by destination and result: ok, down (tried again) or refused (somebody must act).",
    ("destination", "result"),
)
COMMIT_TIME = Spec(
    "counterfoil_commit_seconds",
    Kind.HISTOGRAM,
    "Seconds in which a destination took a delivery.",
    ("destination",),
    STEP_SECONDS,
)
STARTS = _booked("counterfoil_process_starts_total", Kind.COUNTER, "Times that a process was started.", "process")
SETTLED_GROUPS = _booked("counterfoil_settled_groups_total", Kind.COUNTER, "Groups that were settled.")
SETTLED_ROWS = _booked(
    "counterfoil_settled_rows_total",
    Kind.COUNTER,
    "Rows settled, by source and verdict: new, duplicate, conflict, blocked or test.",
    "source",
    "verdict",
)
ROUTED = _booked("counterfoil_routed_rows_total", Kind.COUNTER, "New rows meant for a destination.", "destination")
# No counter: rows that are replayed or erased leave it, and Prometheus would take that for a new beginning.
DELIVERED = _booked(
    "counterfoil_delivered_rows", Kind.GAUGE, "Rows that a destination has taken and should hold.", "destination"
)
DEAD = _booked(
    "counterfoil_dead_rows", Kind.GAUGE, "Rows that a destination can't take, kept as dead letters.", "destination"
)
PENDING = _booked("counterfoil_pending_rows", Kind.GAUGE, "Rows that a destination is still to take.", "destination")
SKIPPED = _booked(
    "counterfoil_skipped_rows_total",
    Kind.COUNTER,
    "Rows that retention removed before a destination took them, while it was not in the configuration.",
    "destination",
)
ERASED = _booked(
    "counterfoil_erased_rows_total",
    Kind.COUNTER,
    "Rows for a destination that were erased, whether it had taken them or not.",
    "destination",
)
OLDEST_PENDING = _booked(
    "counterfoil_oldest_pending_seconds",
    Kind.GAUGE,
    "Seconds since the oldest row was settled that a destination is still to take; 0 when there is none, or it is not "
    "in the configuration.",
    "destination",
)
OLDEST_KEPT = _booked(
    "counterfoil_oldest_kept_seconds", Kind.GAUGE, "Seconds since the oldest group was settled that is kept."
)
OLDEST_GROUP = _booked(
    "counterfoil_oldest_group", Kind.GAUGE, "The oldest group that is kept; those before it are gone by retention."
)
DISK_TOTAL = _booked("counterfoil_disk_bytes", Kind.GAUGE, "Bytes of the disk of the data directory.")
DISK_FREE = _booked("counterfoil_disk_free_bytes", Kind.GAUGE, "Bytes of that disk that are free.")
DISK_RESERVE = _booked(
    "counterfoil_disk_reserve_bytes", Kind.GAUGE, "Free bytes of that disk below which requests are refused."
)
DISK_USED = _booked(
    "counterfoil_disk_used_bytes",
    Kind.GAUGE,
    "Bytes that a part of the data directory takes: queue, ledger, lake or quarantine.",
    "part",
)
DAMAGED_FRAMES = _booked("counterfoil_damaged_frames_total", Kind.COUNTER, "Damages of the queue that settle met.")
QUARANTINED = _booked("counterfoil_quarantined_files", Kind.GAUGE, "Files that lie in quarantine.")

METRICS: tuple[Spec, ...] = (
    REQUESTS, REQUEST_TIME, BODY_BYTES, ROWS, FLUSHES, FLUSH_TIME, FLUSHED_BYTES, FLUSHED_FRAMES, FLUSHED_ROWS,
    SETTLE_TIME, COMMITS, COMMIT_TIME, STARTS, SETTLED_GROUPS, SETTLED_ROWS, ROUTED, DELIVERED, DEAD, PENDING,
    SKIPPED, ERASED, OLDEST_PENDING, OLDEST_KEPT, OLDEST_GROUP, DISK_TOTAL, DISK_FREE, DISK_RESERVE, DISK_USED,
    DAMAGED_FRAMES, QUARANTINED,
)  # fmt: skip


# What processes measure


class Flush(Protocol):
    """What a flush of the queue did."""

    @property
    def frame_count(self) -> int: ...
    @property
    def row_count(self) -> int: ...
    @property
    def flushed_bytes(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def is_failed(self) -> bool: ...


class GatewayMetrics:
    """What a gateway worker counts: many requests a call, once a second, because a call takes longer than a request."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = _counter(REQUESTS, registry)
        self._request_seconds = _histogram(REQUEST_TIME, registry)
        self._body_bytes = _counter(BODY_BYTES, registry)
        self._rows = _counter(ROWS, registry)

    def requests_answered(self, path: str, status: int, request_count: int) -> None:
        """So many requests of a path got this status; `path` may be anything that was asked for."""
        self._requests.labels(_path_label(path), str(status)).inc(request_count)

    def requests_took(self, path: str, bucket_counts: Sequence[int], seconds: float, body_bytes: int) -> None:
        """How long requests of a path took, each bucket counting its own alone, and in all; and their bodies' bytes."""
        histogram = self._request_seconds.labels(_path_label(path))
        # The library observes one by one only; its buckets count what is theirs alone, too.
        for bucket, request_count in zip(histogram._buckets, bucket_counts, strict=True):
            if request_count:
                bucket.inc(request_count)
        histogram._sum.inc(seconds)
        self._body_bytes.labels(_path_label(path)).inc(body_bytes)

    def rows_answered(self, source: str, accepted: int, invalid: int, queue_failed: int) -> None:
        """So many rows of a source were answered so."""
        for result, count in (("accepted", accepted), ("invalid_event", invalid), ("queue_failed", queue_failed)):
            if count:
                self._rows.labels(source, result).inc(count)


def _path_label(path: str) -> str:
    return path if path in PATHS else OTHER_PATH


class QueueMetrics:
    """What a writer of the queue counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._flushes = _counter(FLUSHES, registry)
        self._flush_seconds = _histogram(FLUSH_TIME, registry)
        self._bytes = _counter(FLUSHED_BYTES, registry)
        self._frames = _counter(FLUSHED_FRAMES, registry)
        self._rows = _counter(FLUSHED_ROWS, registry)
        for result in ("ok", "failed"):
            # From 0 on: a counter that begins with 1 has not grown to Prometheus, and the first failure is unseen.
            self._flushes.labels(result)

    def flushed(self, flush: Flush) -> None:
        """A flush ended, well or not."""
        self._flushes.labels("failed" if flush.is_failed else "ok").inc()
        self._flush_seconds.observe(flush.seconds)
        if not flush.is_failed:
            self._bytes.inc(flush.flushed_bytes)
            self._frames.inc(flush.frame_count)
            self._rows.inc(flush.row_count)


class PipelineMetrics:
    """What settle and deliver count."""

    def __init__(self, registry: CollectorRegistry, destinations: Iterable[str]) -> None:
        """`destinations`: the names of those that are delivered to, counted from 0 on like flushes."""
        self._settle_seconds = _histogram(SETTLE_TIME, registry)
        self._commits = _counter(COMMITS, registry)
        self._commit_seconds = _histogram(COMMIT_TIME, registry)
        for name in destinations:
            for result in ("ok", "down", "refused"):
                self._commits.labels(name, result)

    def settled(self, seconds: float) -> None:
        """A group was settled."""
        self._settle_seconds.observe(seconds)

    def committed(self, destination: str, seconds: float) -> None:
        """A destination took a delivery."""
        self._commits.labels(destination, "ok").inc()
        self._commit_seconds.labels(destination).observe(seconds)

    def not_committed(self, destination: str, *, is_refused: bool) -> None:
        """A destination was down, or refused."""
        self._commits.labels(destination, "refused" if is_refused else "down").inc()


def start_metrics(directory: Path, process: str) -> CollectorRegistry:
    """Count this process's metrics in files of `directory`; `process` is a name that no other has at the same time.

    To be called before the first observer is made. Where the files can't be used it counts in memory, unseen.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for kind in (Kind.COUNTER, Kind.HISTOGRAM):
            _prepare_file(directory / f"{kind}_{process}.db")
    except OSError as error:
        log.warning("metrics.not_kept", errno=error.errno)
    else:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
        values.ValueClass = values.MultiProcessValue(lambda: process)  # type: ignore[no-untyped-call]
    return CollectorRegistry()


def _prepare_file(path: Path) -> None:
    """Give the file its room on disk; one that a kill left damaged begins anew."""
    with contextlib.suppress(FileNotFoundError):
        try:
            for _ in MmapedDict.read_all_values_from_file(path):  # type: ignore[no-untyped-call]
                pass
        except FileNotFoundError:
            raise
        except Exception as error:
            # Whatever the file holds: it is worth less than the process that would stumble over it.
            log.warning("metrics.file_begun_anew", error=type(error).__name__)
            path.unlink()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, FILE_BYTES)
    finally:
        os.close(descriptor)


def _counter(spec: Spec, registry: CollectorRegistry) -> Counter:
    return Counter(spec.name.removesuffix("_total"), spec.help, spec.labels, registry=registry)


def _histogram(spec: Spec, registry: CollectorRegistry) -> Histogram:
    return Histogram(spec.name, spec.help, spec.labels, buckets=spec.buckets, registry=registry)


# What is read from the ledger


class BookedSource(Protocol):
    """A source's side of the books."""

    @property
    def source(self) -> str: ...
    @property
    def new(self) -> int: ...
    @property
    def duplicate(self) -> int: ...
    @property
    def conflict(self) -> int: ...
    @property
    def blocked(self) -> int: ...
    @property
    def test(self) -> int: ...


class BookedDestination(Protocol):
    """A destination's side of the books."""

    @property
    def destination(self) -> str: ...
    @property
    def routed(self) -> int: ...
    @property
    def delivered(self) -> int: ...
    @property
    def dead(self) -> int: ...
    @property
    def pending(self) -> int: ...
    @property
    def skipped(self) -> int: ...
    @property
    def erased(self) -> int: ...


class Books(Protocol):
    """The books at one moment."""

    @property
    def sources(self) -> Sequence[BookedSource]: ...
    @property
    def destinations(self) -> Sequence[BookedDestination]: ...
    @property
    def damaged_frames(self) -> int: ...
    @property
    def last_group(self) -> int: ...


class Ages(msgspec.Struct, frozen=True):
    """How long rows wait and are kept."""

    oldest_pending_seconds: Mapping[str, float]
    """By destination; 0 where none is pending."""
    oldest_kept_seconds: float
    oldest_group: int


class DiskSpace(Protocol):
    """The disk of the data directory, in bytes."""

    @property
    def total_bytes(self) -> int: ...
    @property
    def free_bytes(self) -> int: ...
    @property
    def reserve_bytes(self) -> int: ...
    @property
    def used_bytes(self) -> Mapping[str, int]: ...


VERDICTS = ("new", "duplicate", "conflict", "blocked", "test")


def metrics_page(
    directory: Path,
    books: Books | None = None,
    starts: Mapping[str, int] | None = None,
    quarantined: int | None = None,
    ages: Ages | None = None,
    disk: DiskSpace | None = None,
) -> bytes:
    """The page in Prometheus's text format: what the processes counted in `directory`, and what is booked.

    `starts`: how often each process was started; `quarantined`: files in quarantine. What is None is left out.
    """
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(directory))  # type: ignore[no-untyped-call]
    metrics = [*_booked_metrics(books, starts, quarantined), *_age_metrics(ages), *_disk_metrics(disk)]
    registry.register(_Booked(metrics))
    return generate_latest(registry)


class _Booked(Collector):
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _booked_metrics(books: Books | None, starts: Mapping[str, int] | None, quarantined: int | None) -> Iterable[Metric]:
    if starts is not None:
        yield _family(STARTS, {(process,): count for process, count in starts.items()})
    if quarantined is not None:
        yield _family(QUARANTINED, {(): quarantined})
    if books is None:
        return
    yield _family(SETTLED_GROUPS, {(): books.last_group})
    yield _family(DAMAGED_FRAMES, {(): books.damaged_frames})
    yield _family(
        SETTLED_ROWS,
        {(one.source, verdict): getattr(one, verdict) for one in books.sources for verdict in VERDICTS},
    )
    for spec, field in (
        (ROUTED, "routed"),
        (DELIVERED, "delivered"),
        (DEAD, "dead"),
        (PENDING, "pending"),
        (SKIPPED, "skipped"),
        (ERASED, "erased"),
    ):
        yield _family(spec, {(one.destination,): getattr(one, field) for one in books.destinations})


def _age_metrics(ages: Ages | None) -> Iterable[Metric]:
    if ages is not None:
        yield _family(OLDEST_PENDING, {(name,): value for name, value in ages.oldest_pending_seconds.items()})
        yield _family(OLDEST_KEPT, {(): ages.oldest_kept_seconds})
        yield _family(OLDEST_GROUP, {(): ages.oldest_group})


def _disk_metrics(disk: DiskSpace | None) -> Iterable[Metric]:
    if disk is not None:
        yield _family(DISK_TOTAL, {(): disk.total_bytes})
        yield _family(DISK_FREE, {(): disk.free_bytes})
        yield _family(DISK_RESERVE, {(): disk.reserve_bytes})
        yield _family(DISK_USED, {(part,): count for part, count in disk.used_bytes.items()})


def _family(spec: Spec, samples: Mapping[tuple[str, ...], float]) -> Metric:
    family = CounterMetricFamily if spec.kind is Kind.COUNTER else GaugeMetricFamily
    metric = family(spec.name.removesuffix("_total"), spec.help, labels=spec.labels)
    for labels, value in samples.items():
        metric.add_metric(labels, value)
    return metric
