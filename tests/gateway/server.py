"""A gateway worker with a real queue behind it, on a port of its own, in a thread of the test's process."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

from counterfoil.contract.limits import Limits
from counterfoil.files import Files, RealFiles
from counterfoil.gateway.application import Application
from counterfoil.gateway.counts import GatewayObserver
from counterfoil.gateway.rates import Rates, SharedRates
from counterfoil.gateway.settings import GatewaySettings
from counterfoil.gateway.worker import run_worker, wall_clock_ms
from counterfoil.queue import FrameSink
from counterfoil.queue.frame import Frame
from counterfoil.queue.reader import QueueReader
from counterfoil.queue.settings import QueueSettings
from counterfoil.queue.writer import SegmentWriter
from counterfoil.sources import Sources, SourceSettings, token_sha256
from tests.ports import free_port

TOKEN = "live-token"
TEST_TOKEN = "test-token"
SOURCE = SourceSettings(
    name="website", token_sha256=(token_sha256(TOKEN),), test_token_sha256=(token_sha256(TEST_TOKEN),)
)
NO_RESERVE = QueueSettings(reserve_bytes=0)
WAIT_SECONDS = 120.0
"""For what comes at once, and on a busy machine some time later."""

Sink = Callable[[FrameSink], FrameSink]


def until(condition: Callable[[], bool], what: str) -> None:
    """Return when it holds; fail when it does not for WAIT_SECONDS."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"never {what}"
        time.sleep(0.002)


def row(distinct_id: str, **fields: Any) -> dict[str, Any]:
    return {"event": "Purchase", "distinctId": distinct_id, **fields}


def batch(*rows: Any, token: str = TOKEN) -> bytes:
    return json.dumps({"token": token, "events": rows}).encode()


class RunningGateway:
    """Started when entered, stopped and its queue closed when left."""

    def __init__(
        self,
        directory: Path,
        *,
        sources: Sequence[SourceSettings] = (SOURCE,),
        limits: Limits | None = None,
        queue: QueueSettings = NO_RESERVE,
        files: Files | None = None,
        sink: Sink = lambda sink: sink,
        clock_ms: Callable[[], int] = wall_clock_ms,
        observer: GatewayObserver | None = None,
        rates: Rates | None = None,
        **settings: Any,
    ) -> None:
        self.directory = directory
        self.port = free_port()
        self.limits = limits or Limits()
        self.sources = Sources(sources, self.limits)
        self.settings = GatewaySettings(port=self.port, **settings)
        self.queue = queue
        self._files = files or RealFiles()
        self._sink = sink
        self._clock_ms = clock_ms
        self._observer = observer
        self._rates = rates or SharedRates.open(directory / "rates")
        self._applications: list[Application] = []
        self._is_listening = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="gateway-under-test")

    @property
    def url(self) -> str:
        scheme = "https" if self.settings.tls_cert else "http"
        return f"{scheme}://127.0.0.1:{self.port}"

    def __enter__(self) -> RunningGateway:
        self._thread.start()
        self._is_listening.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error
        return self

    def __exit__(self, *_: object) -> None:
        self.begin_stop()
        self.wait_stopped()

    def begin_stop(self) -> None:
        if self._loop is not None and self._stop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)

    def wait_stopped(self) -> None:
        self._thread.join(WAIT_SECONDS)
        assert not self._thread.is_alive(), "it does not stop"
        if self._error is not None:
            raise self._error

    def reload(self, sources: Sequence[SourceSettings], limits: Limits | None = None) -> None:
        """Replace sources and limits while it runs; returns when it is done."""
        assert self._loop is not None

        async def replace() -> None:
            self._applications[0].reload(sources, limits or self.limits)

        asyncio.run_coroutine_threadsafe(replace(), self._loop).result()

    def held_bytes(self) -> int:
        """Bytes of bodies that it holds now."""
        return self._applications[0].held_bytes

    def post(self, path: str, body: bytes | dict[str, Any], **headers: str) -> httpx.Response:
        """POST to a path below /api/v1, as JSON unless `headers` (with _ for -) say otherwise."""
        content = json.dumps(body).encode() if isinstance(body, dict) else body
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.post(
            f"{self.url}/api/v1{path}",
            content=content,
            headers={"content-type": "application/json"} | named,
            timeout=WAIT_SECONDS,
        )

    def connect(self, timeout: float = WAIT_SECONDS) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def frames(self) -> list[Frame]:
        """Every durable frame, in order."""
        reader = QueueReader(self.directory / "queue", RealFiles(), None)
        found: list[Frame] = []
        for directory in reader.directories():
            start = None
            while True:
                result = reader.read(directory, start, 64 * 1024 * 1024)
                assert not result.damages
                found += result.frames
                if not result.frames:
                    break
                start = result.next
        return found

    def rows(self) -> list[dict[str, Any]]:
        """Every durable row, in order."""
        return [json.loads(frame.row(index)) for frame in self.frames() for index in range(frame.facts.row_count)]

    def distinct_ids(self) -> list[str]:
        return [found["distinctId"] for found in self.rows()]

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._error = error
        finally:
            self._is_listening.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        writer = SegmentWriter.open(
            self.directory / "queue", self._files, self.queue, quarantine=self.directory / "quarantine"
        )
        try:
            await run_worker(
                self.settings,
                self.limits,
                self.queue,
                self.sources,
                self._sink(writer),
                stop=self._stop,
                rates=self._rates,
                on_listening=self._is_listening.set,
                clock_ms=self._clock_ms,
                observer=self._observer,
                on_application=self._applications.append,
            )
        finally:
            await writer.close()


class Answered:
    """An HTTP/1.1 answer read from a raw connection."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def json(self) -> Any:
        return json.loads(self.body)


def read_answer(connection: socket.socket, *, is_head: bool = False) -> Answered:
    """The next answer on a connection, by its Content-Length; ConnectionError when there is none."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += _more(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    length = 0 if is_head else int(headers.get("content-length", 0))
    while len(body) < length:
        body += _more(connection)
    assert len(body) == length
    return Answered(int(lines[0].split()[1]), headers, body)


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side has closed, with nothing more said."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def request_head(path: str, *headers: str, method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: test", "content-type: application/json", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def _more(connection: socket.socket) -> bytes:
    received = connection.recv(1 << 16)
    if not received:
        raise ConnectionError("closed before the answer was whole")
    return received
