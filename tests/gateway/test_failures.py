"""The disk fails for real: what did not become durable is said to have not, row by row, and what did is there."""

import asyncio
import io
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from counterfoil.errors import QueueRefused
from counterfoil.positions import FramePosition
from counterfoil.queue import FrameSink
from counterfoil.queue.frame import FrameDraft
from counterfoil.queue.writer import FLUSH_BYTES
from counterfoil.telemetry.logs import configure_logs
from tests.gateway.alone import AloneGateway
from tests.gateway.server import TOKEN, RunningGateway, batch, row, until

KIB = 1024


def rows_of(count: int, row_bytes: int) -> list[dict[str, Any]]:
    return [row(f"order-{index}", fill="x" * row_bytes) for index in range(count)]


def told(answer: httpx.Response, sent: Sequence[dict[str, Any]]) -> list[str]:
    """The distinctIds of the rows that were answered as successes; nothing but the queue failed the others."""
    results = answer.json().get("results", [])
    assert {result["code"] for result in results if not result["success"]} <= {"queue_failed"}
    return [sent[result["index"]]["distinctId"] for result in results if result["success"]]


def test_a_request_whose_every_row_fails_in_the_queue_is_500_with_results(tmp_path: Path) -> None:
    """Valid rows are `queue_failed`, invalid ones `invalid_event`; the answer asks for the failed rows again."""
    with AloneGateway(tmp_path, file_bytes=32 * KIB) as gateway:
        answer = gateway.post("/batch", batch(*rows_of(3, 20 * KIB), {}))
        assert answer.status_code == 500
        body = answer.json()
        assert set(body) == {"success", "error", "retryable", "results"}
        assert (body["success"], body["retryable"]) == (False, True)
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        codes = [(result["success"], result["code"]) for result in body["results"]]
        assert codes == [(False, "queue_failed")] * 3 + [(False, "invalid_event")]
        assert gateway.distinct_ids() == []


def test_a_queue_that_failed_takes_rows_again(tmp_path: Path) -> None:
    """After the failed flush a fresh segment is begun: what fits is taken, and a repeat of what failed is answered."""
    with AloneGateway(tmp_path, file_bytes=32 * KIB) as gateway:
        assert gateway.post("/batch", batch(*rows_of(3, 20 * KIB))).status_code == 500
        until(lambda: gateway.post("/batch", batch(row("small"))).status_code == 200, "took a row again")
        assert gateway.distinct_ids() == ["small"]


def test_frames_that_fail_fail_with_exactly_their_rows(tmp_path: Path) -> None:
    """A large request of which a part meets the file size limit is 207; its other rows are durable."""
    # Which frames share a flush is up to the threads, but no flush is larger than FLUSH_BYTES: the first one fits into
    # the file, and all of them do not.
    with AloneGateway(tmp_path, file_bytes=FLUSH_BYTES + 2000 * KIB, queue={"frame_bytes_max": 64 * KIB}) as gateway:
        sent = [row(f"{index}", fill="x" * 2000) for index in range(7000)]
        answer = gateway.post("/batch", batch(*sent))
        assert answer.status_code == 207
        results = answer.json()["results"]
        assert [result["index"] for result in results] == list(range(7000))
        assert {result["success"] for result in results} == {True, False}
        assert gateway.distinct_ids() == told(answer, sent)


def test_a_track_that_may_be_kept_is_not_asked_for_again(tmp_path: Path) -> None:
    """Without a distinctId a repeat is a second event: after a failed flush SDKs are told not to repeat it."""
    filling = {"fill": "x" * 40 * KIB}
    for extra, should_retry in (({}, "false"), ({"distinctId": "a"}, None)):
        directory = tmp_path / (should_retry or "retried")
        directory.mkdir()
        with AloneGateway(directory, file_bytes=32 * KIB) as gateway:
            answer = gateway.post("/track", {"token": TOKEN, "event": "x", **filling, **extra})
            assert answer.status_code == 500
            assert answer.headers.get("x-should-retry") == should_retry
            assert ("retry-after" in answer.headers) == (should_retry is None)
            assert answer.json()["retryable"] is (should_retry is None)


def test_an_identify_is_asked_for_again(tmp_path: Path) -> None:
    """Its distinctId is the server's, but repeating it sets the same properties again."""
    with AloneGateway(tmp_path, file_bytes=32 * KIB) as gateway:
        answer = gateway.post("/identify", {"token": TOKEN, "userProperties": {}, "fill": "x" * 40 * KIB})
        assert (answer.status_code, answer.json()["retryable"]) == (500, True)
        assert "x-should-retry" not in answer.headers


def test_below_the_reserve_requests_are_refused_whole(tmp_path: Path) -> None:
    """Nothing is judged or written: 500 without results, a long Retry-After, and not ready; bad tokens stay bad."""
    with AloneGateway(tmp_path, queue={"reserve_bytes": 1 << 60, "reserve_percent": 90}) as gateway:
        answer = gateway.post("/batch", batch(row("a"), {}))
        assert answer.status_code == 500
        assert set(answer.json()) == {"success", "error", "retryable"}
        assert answer.headers["retry-after"] == "60"
        track = gateway.post("/track", {"token": TOKEN, "event": "x"})
        assert track.status_code == 500
        assert "x-should-retry" not in track.headers
        assert gateway.post("/batch", batch(row("a"), token="unknown")).status_code == 401
        assert httpx.get(f"{gateway.url}/readyz", timeout=60).status_code == 503
        assert httpx.get(f"{gateway.url}/livez", timeout=60).status_code == 200
        assert gateway.frames() == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB; only root can mount one."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here, not even to root")
    yield disk
    # Lazily, because a reader's segments stay mapped until they are collected.
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk_is_told_row_by_row(small_disk: Path) -> None:
    """Requests until it is full, and past it: every row answered as a success is there, and nothing else is."""
    succeeded: list[str] = []
    with AloneGateway(small_disk, queue={"reserve_percent": 0}) as gateway:
        statuses = set()
        for request in range(40):
            sent = [row(f"{request}.{index}", fill="x" * 1000) for index in range(200)]
            answer = gateway.post("/batch", batch(*sent))
            statuses.add(answer.status_code)
            succeeded += told(answer, sent)
        assert statuses == {200, 500}
        assert gateway.distinct_ids() == succeeded
        assert len(succeeded) > 1000


class _Sink:
    """A real queue behind a door: what the test says of it is what it does."""

    def __init__(self, sink: FrameSink) -> None:
        self.sink = sink
        self.fails: Exception | None = None

    def append(self, drafts: Sequence[FrameDraft]) -> list[asyncio.Future[FramePosition]]:
        if self.fails is not None:
            raise self.fails
        return self.sink.append(drafts)

    def refusal(self) -> QueueRefused | None:
        return self.sink.refusal()

    async def close(self) -> None:
        await self.sink.close()


def test_what_nobody_foresaw_is_a_retryable_500_without_a_traceback(tmp_path: Path) -> None:
    """The sender learns that nothing is confirmed, and nothing of the inside; the worker goes on."""
    sinks: list[_Sink] = []

    def behind_door(sink: FrameSink) -> FrameSink:
        sinks.append(_Sink(sink))
        return sinks[0]

    with RunningGateway(tmp_path, sink=behind_door) as gateway:
        sinks[0].fails = ZeroDivisionError("a secret of the inside")
        for answer in (gateway.post("/batch", batch(row("a"))), gateway.post("/track", {"token": TOKEN, "event": "x"})):
            assert answer.status_code == 500
            assert set(answer.json()) == {"success", "error", "retryable"}
            assert answer.json()["retryable"] is True
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            assert "ZeroDivision" not in answer.text
            assert "secret" not in answer.text
        sinks[0].fails = None
        assert gateway.post("/batch", batch(row("a"))).status_code == 200


def test_a_log_of_an_unforeseen_error_holds_nothing_of_its_row(tmp_path: Path) -> None:
    """P6: the worker says what kind of error it was and where, whatever the error's text holds."""
    sinks: list[_Sink] = []

    def behind_door(sink: FrameSink) -> FrameSink:
        sinks.append(_Sink(sink))
        sinks[0].fails = ValueError("jane@example.org")
        return sinks[0]

    written = io.StringIO()
    configure_logs("gateway", stream=written, is_terminal=False)
    try:
        with RunningGateway(tmp_path, sink=behind_door) as gateway:
            gateway.post("/batch", batch(row("jane@example.org")))
    finally:
        structlog.reset_defaults()
    (line,) = [one for one in map(json.loads, written.getvalue().splitlines()) if one["event"] == "gateway.unforeseen"]
    assert line["error"] == "ValueError"
    assert "jane" not in written.getvalue()
