"""A worker's life: it listens, shares its port, answers what is in flight when it stops, or says why it can't start."""

import asyncio
import contextlib
import resource
import signal
import socket
import ssl
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from counterfoil.contract.limits import Limits
from counterfoil.errors import QueueRefused, SettingsInvalid, StartRefused
from counterfoil.gateway import worker
from counterfoil.gateway.worker import take_descriptors
from counterfoil.positions import FramePosition
from counterfoil.queue import FrameSink
from counterfoil.queue.frame import FrameDraft
from tests.certificate import make_certificate
from tests.gateway.alone import AloneGateway
from tests.gateway.http2 import Http2Connection
from tests.gateway.server import (
    TOKEN,
    WAIT_SECONDS,
    RunningGateway,
    batch,
    is_closed,
    read_answer,
    request_head,
    row,
    until,
)

PATIENT = Limits(request_seconds_max=3600)
"""A request has longer to arrive than any test waits: where one ends sooner, it was not left to that."""


class SlowSink:
    """A real queue that acknowledges when the test lets it."""

    def __init__(self, sink: FrameSink) -> None:
        self.sink = sink
        self.may_acknowledge = asyncio.Event()
        self.loop = asyncio.get_running_loop()

    def append(self, drafts: Sequence[FrameDraft]) -> list[asyncio.Future[FramePosition]]:
        async def later(future: asyncio.Future[FramePosition]) -> FramePosition:
            await self.may_acknowledge.wait()
            return await future

        return [self.loop.create_task(later(future)) for future in self.sink.append(drafts)]

    def refusal(self) -> QueueRefused | None:
        return self.sink.refusal()

    async def close(self) -> None:
        await self.sink.close()

    def acknowledge(self) -> None:
        self.loop.call_soon_threadsafe(self.may_acknowledge.set)


def slowly(made: list[SlowSink]) -> Callable[[FrameSink], FrameSink]:
    def behind(sink: FrameSink) -> FrameSink:
        made.append(SlowSink(sink))
        return made[0]

    return behind


def post(connection: socket.socket, body: bytes) -> None:
    connection.sendall(request_head("/api/v1/batch", f"content-length: {len(body)}") + body)


def listens(gateway: RunningGateway) -> bool:
    try:
        gateway.connect().close()
    except ConnectionError:
        return False
    return True


def test_requests_in_flight_are_answered_when_a_worker_stops(tmp_path: Path) -> None:
    """What has arrived is flushed and answered; no new connection is taken; then the worker ends."""
    made: list[SlowSink] = []
    gateway = RunningGateway(tmp_path, sink=slowly(made))
    with gateway, gateway.connect() as connection, gateway.connect() as idle:
        idle.sendall(request_head("/livez", method="GET"))
        assert read_answer(idle).status == 200
        post(connection, batch(row("a")))
        until(lambda: bool(gateway.distinct_ids()), "durable")
        gateway.begin_stop()
        until(lambda: not listens(gateway), "stopped to listen")
        assert is_closed(idle)
        made[0].acknowledge()
        assert read_answer(connection).json()["accepted"] == 1
        gateway.wait_stopped()
        assert is_closed(connection)


@pytest.mark.parametrize(("request_count", "row_count"), [(10, 1), (1, 20)], ids=["small", "large"])
def test_what_waits_for_the_disk_is_held_once(tmp_path: Path, request_count: int, row_count: int) -> None:
    """A request whose rows the queue has holds no body and no rows of it any more."""
    made: list[SlowSink] = []
    body = batch(*(row(f"order-{index}", fill="x" * 200_000) for index in range(row_count)))
    with RunningGateway(tmp_path, sink=slowly(made)) as gateway, contextlib.ExitStack() as connections:
        tracemalloc.start()
        connections.callback(tracemalloc.stop)
        waiting = [connections.enter_context(gateway.connect()) for _ in range(request_count)]
        for count, connection in enumerate(waiting, 1):
            post(connection, body)
            until(lambda rows=count * row_count: len(gateway.distinct_ids()) == rows, "durable")  # type: ignore[misc]
        until(lambda: tracemalloc.get_traced_memory()[0] < request_count * len(body) // 2, "let go of its bodies")
        made[0].acknowledge()
        assert [read_answer(connection).status for connection in waiting] == [200] * request_count


def test_a_request_that_has_not_arrived_does_not_hold_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets a little time, then 500 to be sent again; connections that say nothing are left behind."""
    monkeypatch.setattr(worker, "ARRIVAL_SECONDS", 0.3)
    monkeypatch.setattr(worker, "QUIET_SECONDS", 0.3)
    gateway = RunningGateway(tmp_path, limits=PATIENT)
    with gateway, gateway.connect() as connection, gateway.connect() as silent:
        silent.sendall(b"POST /api")
        connection.sendall(request_head("/api/v1/batch", "content-length: 1000") + b"{")
        assert gateway.post("/batch", batch(row("a"))).status_code == 200
        until(lambda: gateway.held_bytes() == 1, "held what was sent")
        gateway.begin_stop()
        answer = read_answer(connection)
        assert (answer.status, answer.json()["retryable"]) == (500, True)
        gateway.wait_stopped()


def test_a_process_ends_on_sigterm_with_what_was_acknowledged_on_disk(tmp_path: Path) -> None:
    """Exit status 0, soon, also while connections stay open that never say what they want."""
    with AloneGateway(tmp_path, limits=PATIENT.model_dump()) as gateway:
        silent = gateway.connect()
        silent.sendall(b"POST /api")
        assert gateway.post("/batch", batch(row("a"))).status_code == 200
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(WAIT_SECONDS) == 0
        silent.close()
        assert gateway.distinct_ids() == ["a"]


def test_stopping_twice_is_harmless(tmp_path: Path) -> None:
    """A second stop finds nothing to do."""
    with RunningGateway(tmp_path) as gateway:
        gateway.begin_stop()
        gateway.begin_stop()
        gateway.wait_stopped()
        gateway.begin_stop()


def test_workers_share_their_port(tmp_path: Path) -> None:
    """Two on one port each have a queue of their own; both answer, and when one stops the other goes on."""
    first, second = RunningGateway(tmp_path), RunningGateway(tmp_path)
    second.port, second.settings = first.port, first.settings
    with first:
        with second:
            for index in range(64):
                assert first.post("/batch", batch(row(str(index)))).status_code == 200
            assert sorted(int(found) for found in first.distinct_ids()) == list(range(64))
            assert sorted(path.name for path in (tmp_path / "queue").iterdir()) == ["1", "2"]
        for index in range(8):
            assert first.post("/batch", batch(row(f"later-{index}"))).status_code == 200


def test_a_port_that_somebody_has_is_told(tmp_path: Path) -> None:
    """StartRefused, and the line names host and port."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        gateway = RunningGateway(tmp_path)
        port = other.getsockname()[1]
        gateway.settings = gateway.settings.model_copy(update={"port": port})
        with pytest.raises(StartRefused, match=f"port {port} of 127.0.0.1"), gateway:
            pass


def test_an_address_that_is_not_ours_is_told(tmp_path: Path) -> None:
    """StartRefused as well."""
    gateway = RunningGateway(tmp_path, host="192.0.2.1")
    with pytest.raises(StartRefused, match=r"of 192\.0\.2\.1"), gateway:
        pass


@pytest.mark.parametrize(("host", "reached"), [("::1", "[::1]"), ("localhost", "localhost"), ("0.0.0.0", "127.0.0.1")])
def test_a_host_may_be_a_name_or_any_address(tmp_path: Path, host: str, reached: str) -> None:
    """IPv6, a name, or every address of the machine."""
    with RunningGateway(tmp_path, host=host) as gateway:
        assert httpx.get(f"http://{reached}:{gateway.port}/livez", timeout=60).status_code == 200


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for localhost and its key."""
    return make_certificate(tmp_path)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
def test_tls_by_settings(
    tmp_path: Path, certificate: tuple[Path, Path], version: ssl.TLSVersion, protocol: str
) -> None:
    """HTTPS with both versions of HTTP, over TLS 1.2 and 1.3."""
    cert, key = certificate
    context = ssl.create_default_context(cafile=str(cert))
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols([protocol])
    with RunningGateway(tmp_path, tls_cert=cert, tls_key=key) as gateway:
        with context.wrap_socket(gateway.connect(), server_hostname="localhost") as connection:
            assert connection.selected_alpn_protocol() == protocol
            body = batch(row("a"))
            if protocol == "h2":
                http2 = Http2Connection(connection)
                stream = http2.send("POST", "/api/v1/batch", [body], [("content-type", "application/json")])
                assert http2.answers([stream])[stream][0] == 200
            else:
                post(connection, body)
                assert read_answer(connection).status == 200
        assert gateway.distinct_ids() == ["a"]


def test_a_certificate_that_can_not_be_used_is_told(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    """SettingsInvalid, naming the setting: a file that isn't there, and a key that isn't its own."""
    cert, key = certificate
    with (
        pytest.raises(SettingsInvalid, match=r"gateway\.tls_key: expected a file"),
        RunningGateway(tmp_path, tls_cert=cert, tls_key=tmp_path / "nowhere"),
    ):
        pass
    key.write_text("no key")
    with (
        pytest.raises(SettingsInvalid, match=r"gateway\.tls_cert, gateway\.tls_key"),
        RunningGateway(tmp_path, tls_cert=cert, tls_key=key),
    ):
        pass


def test_http2_requests_in_flight_are_answered_when_a_worker_stops(tmp_path: Path) -> None:
    """The connection takes no new ones, and those it has are answered."""
    made: list[SlowSink] = []
    gateway = RunningGateway(tmp_path, sink=slowly(made))
    with gateway, gateway.connect() as connection:
        http2 = Http2Connection(connection)
        held = http2.send("POST", "/api/v1/batch", [batch(row("a"))], [("content-type", "application/json")])
        until(lambda: bool(gateway.distinct_ids()), "durable")
        gateway.begin_stop()
        until(lambda: not listens(gateway), "stopped to listen")
        made[0].acknowledge()
        assert http2.answers([held])[held][0] == 200


def test_descriptors_are_raised_for_the_connections() -> None:
    """The soft limit grows up to what is needed; where it can't, there are fewer connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
        assert take_descriptors(1000) == 1000
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 1000
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_connections_than_allowed_wait(tmp_path: Path) -> None:
    """Beyond `connections_max` a connection is accepted when another has gone, and is then served."""
    with RunningGateway(tmp_path, connections_max=16) as gateway:
        held = [gateway.connect() for _ in range(16)]
        for connection in held:
            connection.sendall(request_head("/livez", method="GET"))
            assert read_answer(connection).status == 200
        with gateway.connect(0.5) as waiting:
            waiting.sendall(request_head("/livez", method="GET"))
            with pytest.raises(TimeoutError):
                read_answer(waiting)
            for connection in held:
                connection.close()
            waiting.settimeout(WAIT_SECONDS)
            assert read_answer(waiting).status == 200


class Counted:
    """An observer that adds up."""

    def __init__(self) -> None:
        self.answered: dict[tuple[str, int], int] = {}
        self.took: dict[str, tuple[int, int]] = {}
        self.rows: dict[str, tuple[int, int, int]] = {}

    def requests_answered(self, path: str, status: int, request_count: int) -> None:
        self.answered[path, status] = self.answered.get((path, status), 0) + request_count

    def requests_took(self, path: str, bucket_counts: Sequence[int], seconds: float, body_bytes: int) -> None:
        requests, before = self.took.get(path, (0, 0))
        self.took[path] = (requests + sum(bucket_counts), before + body_bytes)

    def rows_answered(self, source: str, accepted: int, invalid: int, queue_failed: int) -> None:
        before = self.rows.get(source, (0, 0, 0))
        self.rows[source] = (before[0] + accepted, before[1] + invalid, before[2] + queue_failed)


def test_an_observer_hears_of_every_request_and_row(tmp_path: Path) -> None:
    """What went in and what came out, by path and status, by source and outcome; also what is counted at the end."""
    counted = Counted()
    with RunningGateway(tmp_path, observer=counted) as gateway:
        sent: list[Any] = [batch(row("a"), {}), batch(row("b")), b"no", batch(row("c"), token="unknown")]
        for body in sent:
            gateway.post("/batch", body)
        gateway.post("/track", {"token": TOKEN, "event": "x"})
        gateway.post("/track", {"token": TOKEN})
        httpx.get(f"{gateway.url}/jane@example.org", timeout=60)
    assert counted.answered == {
        ("/api/v1/batch", 207): 1,
        ("/api/v1/batch", 200): 1,
        ("/api/v1/batch", 400): 1,
        ("/api/v1/batch", 401): 1,
        ("/api/v1/track", 200): 1,
        ("/api/v1/track", 400): 1,
        ("other", 404): 1,
    }
    assert counted.took["/api/v1/batch"] == (4, sum(map(len, sent)))
    assert counted.took["other"] == (1, 0)
    assert counted.rows == {"website": (3, 2, 0)}
