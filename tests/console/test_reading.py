from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from uuid import UUID, uuid4

import msgspec
import pytest

from counterfoil.children import ChildState, ChildStatus
from counterfoil.console.disk import LOOK_SECONDS, Disk
from counterfoil.console.reading import LedgerView, Readiness, StateReader
from counterfoil.contract.facts import key_hash, key_prefix
from counterfoil.files import RealFiles
from counterfoil.ledger import Ledger
from counterfoil.ledger.settings import LedgerSettings
from counterfoil.pipeline.settings import PipelineSettings
from counterfoil.pipeline.settle import Settler
from counterfoil.queue.frame import FrameDraft, Origin, draft_frame
from counterfoil.queue.reader import QueueReader
from counterfoil.queue.settings import MIB, QueueSettings
from counterfoil.queue.writer import SegmentWriter

LEDGER_ID = uuid4()
NOW_MS = 1_800_000_000_000


def a_frame(*distinct_ids: str) -> FrameDraft:
    prefix = key_prefix("website")
    return draft_frame(
        origin=msgspec.json.encode(Origin("website")),
        rows=[b"{}" for _ in distinct_ids],
        key_hashes=[key_hash(prefix, each) for each in distinct_ids],
        content_hashes=[b"same row" for _ in distinct_ids],
        received_at_ms=NOW_MS,
        request_id=bytes(16),
    )


def write_rows(data_dir: Path, *distinct_ids: str) -> None:
    async def write() -> None:
        settings = QueueSettings(reserve_bytes=0)
        writer = SegmentWriter.open(data_dir / "queue", RealFiles(), settings, quarantine=data_dir / "quarantine")
        await asyncio.gather(*writer.append([a_frame(*distinct_ids)]))
        await writer.close()

    asyncio.run(write())


@contextmanager
def reading(data_dir: Path, ledger_id: UUID = LEDGER_ID) -> Iterator[StateReader]:
    ticks = iter(range(1_000_000))
    reader = StateReader(
        ledger=LedgerView(data_dir / "ledger", LedgerSettings(), ledger_id),
        queue=QueueReader(data_dir / "queue", RealFiles(), None),
        quarantine=data_dir / "quarantine",
        readiness=Readiness(None),
        disk=Disk(data_dir, RealFiles(), QueueSettings(reserve_bytes=MIB)),
        source_names=("website", "shop"),
        destination_names=("lake",),
        clock=lambda: NOW_MS,
        monotonic=lambda: float(next(ticks)),
    )
    try:
        yield reader
    finally:
        reader.close()
        reader.close()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(tmp_path / "ledger", LedgerSettings(), LEDGER_ID)
    yield opened
    opened.close()


def test_books_are_read_while_the_pipeline_writes_them(tmp_path: Path, ledger: Ledger) -> None:
    """The state shows what another opened ledger records, as soon as it has been recorded."""
    ledger.register_destination("lake")
    queue = QueueReader(tmp_path / "queue", RealFiles(), None)
    with reading(tmp_path) as reader:
        before = reader.read()
        assert [(source.name, source.accepted) for source in before.sources] == [("shop", 0), ("website", 0)]
        write_rows(tmp_path, "a", "b", "a")
        assert Settler(queue, ledger, PipelineSettings(), clock=lambda: NOW_MS).step() == 3
        after = reader.read()
        (tmp_path / "metrics").mkdir()
        metrics = reader.metrics(tmp_path / "metrics").decode()
    _, website = after.sources
    assert (website.accepted, website.new, website.duplicate) == (3, 2, 1)
    (lake,) = after.destinations
    assert (lake.routed, lake.delivered, lake.pending, lake.state) == (2, 0, 2, "unknown")
    (writer,) = after.writers
    assert writer.written == writer.settled
    assert after.ledger is None
    assert 'counterfoil_settled_rows_total{source="website",verdict="duplicate"} 1.0' in metrics
    assert 'counterfoil_pending_rows{destination="lake"} 2.0' in metrics


def test_how_long_the_oldest_row_waits_is_told(tmp_path: Path, ledger: Ledger) -> None:
    """From when it was settled, 0 again when none is pending; and 0 for a destination that is not set any more."""
    for name in ("lake", "taken-out"):
        ledger.register_destination(name)
    queue = QueueReader(tmp_path / "queue", RealFiles(), None)
    settler = Settler(queue, ledger, PipelineSettings(), clock=lambda: NOW_MS - 90_000)
    (tmp_path / "metrics").mkdir()
    with reading(tmp_path) as reader:
        assert reader.read().destinations[0].oldest_pending_seconds == 0
        for each in ("a", "b"):
            write_rows(tmp_path, each)
            assert settler.step() == 1
        late = reader.read()
        page = reader.metrics(tmp_path / "metrics").decode()
        ledger.record_delivery("lake", first_group=1, last_group=2, delivered_rows=2, commit="1", at_ms=NOW_MS)
        done = reader.read()
    assert (late.destinations[0].oldest_pending_seconds, done.destinations[0].oldest_pending_seconds) == (90, 0)
    assert (late.oldest_group, late.oldest_kept_ms) == (1, NOW_MS - 90_000)
    assert 'counterfoil_oldest_pending_seconds{destination="lake"} 90.0' in page
    assert 'counterfoil_pending_rows{destination="taken-out"} 2.0' in page
    assert 'counterfoil_oldest_pending_seconds{destination="taken-out"} 0.0' in page
    assert "counterfoil_oldest_kept_seconds 90.0" in page


def test_the_disk_is_told(tmp_path: Path, ledger: Ledger) -> None:
    """The state has the disk's free bytes, the reserve, and what each part of the data directory takes."""
    write_rows(tmp_path, "a")
    (tmp_path / "metrics").mkdir()
    with reading(tmp_path) as reader:
        disk = reader.read().disk
        page = reader.metrics(tmp_path / "metrics").decode()
    assert disk is not None
    assert disk.reserve_bytes == MIB
    assert 0 < disk.free_bytes < disk.total_bytes
    assert set(disk.used_bytes) == {"queue", "ledger"}
    assert all(disk.used_bytes.values())
    assert "counterfoil_disk_reserve_bytes 1.048576e+06" in page
    assert 'counterfoil_disk_used_bytes{part="queue"}' in page


def test_the_files_are_counted_at_leisure(tmp_path: Path) -> None:
    """However often it is asked, the files are counted again after a while only."""
    now = [0.0]
    disk = Disk(tmp_path, RealFiles(), QueueSettings(), lambda: now[0])
    first = disk.read()
    (tmp_path / "queue").mkdir()
    now[0] = LOOK_SECONDS
    assert disk.read() is first
    now[0] += 0.1
    second = disk.read()
    assert second is not None
    assert set(second.used_bytes) == {"queue"}


def test_the_page_answers_before_there_is_a_ledger(tmp_path: Path) -> None:
    """Without a ledger the state says so, and shows what the queue holds all the same."""
    write_rows(tmp_path, "a")
    with reading(tmp_path) as reader:
        state = reader.read()
    assert state.ledger is not None
    assert len(state.writers) == 1
    assert state.writers[0].settled is None


def test_a_queue_that_can_not_be_read_is_told(tmp_path: Path, ledger: Ledger) -> None:
    """The page answers all the same: that is when it is wanted."""
    write_rows(tmp_path, "a")
    with reading(tmp_path) as reader:
        reader.read()
        shutil.rmtree(tmp_path / "queue" / "1")
        (tmp_path / "queue" / "1").touch()
        (writer,) = reader.read().writers
        assert writer.written == "can't be read: Not a directory"


def test_another_queues_ledger_is_told(tmp_path: Path, ledger: Ledger) -> None:
    """The books of a ledger that isn't this queue's are not shown."""
    with reading(tmp_path, uuid4()) as reader:
        state = reader.read()
    assert state.ledger is not None
    assert "expected" in state.ledger


def test_conditions_come_from_a_running_pipeline(tmp_path: Path, ledger: Ledger) -> None:
    """How a destination is stands in the state as long as the pipeline that says so is ready."""
    pipeline = ChildStatus("pipeline", ChildState.READY, 7, 1, NOW_MS, None, {"lake": "down"})
    with reading(tmp_path) as reader:
        reader.hear(msgspec.json.encode([pipeline]))
        assert reader.read().destinations[0].state == "down"
        reader.hear(msgspec.json.encode([msgspec.structs.replace(pipeline, state=ChildState.WAITING)]))
        assert reader.read().destinations[0].state == "unknown"


@pytest.mark.parametrize(("status", "is_ready"), [(200, True), (503, False)])
def test_ready_is_what_the_gateway_says(status: int, is_ready: bool) -> None:
    """The console is ready when the gateway answers that it is."""

    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Answering) as gateway:
        thread = threading.Thread(target=gateway.handle_request)
        thread.start()
        readiness = Readiness(f"http://127.0.0.1:{gateway.server_port}/readyz")
        reason = readiness.reason_against()
        thread.join()
    assert (reason is None) is is_ready
    assert readiness.reason_against() == "the gateway gives no answer"
    readiness.close()
