"""One gateway worker: Granian, embedded in a process of ours, with its own writer behind it.

Workers share their port (SO_REUSEPORT: Granian binds so by itself); each accepts and answers alone. `run_worker` lives
from its start until `stop` is set:

    start     descriptors for the connections, TLS, the port; then `on_listening` is called
    run       Granian's thread reads and writes, the event loop judges, the writer's thread flushes
    stop      no new connection is taken; requests that have arrived are answered; those still arriving have
              ARRIVAL_SECONDS; a connection that never says what it wants is left behind

The queue is the caller's: close it after this has returned, and everything acknowledged is flushed already.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import time
from collections.abc import Callable
from pathlib import Path

import structlog
from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.http import HTTP1Settings, HTTP2Settings
from granian.server.embed import Server

from counterfoil.contract.limits import Limits
from counterfoil.errors import SettingsInvalid, StartRefused
from counterfoil.gateway.application import Application
from counterfoil.gateway.counts import GatewayObserver
from counterfoil.gateway.rates import Rates
from counterfoil.gateway.settings import GatewaySettings
from counterfoil.gateway.silence import let_connections_inherit, shut_silent
from counterfoil.gateway.uuid7 import Uuid7
from counterfoil.queue import FrameSink
from counterfoil.queue.settings import QueueSettings
from counterfoil.sources import Sources

log = structlog.get_logger()

KIB = 1024
BACKLOG = 2048
COUNTS_SECONDS = 1.0

ARRIVAL_SECONDS = 3.0
"""How long a stopping worker waits for the rest of requests."""
QUIET_SECONDS = 1.0
"""How long nothing must be in flight before it leaves connections that say nothing."""
LEAVE_SECONDS = 6.0
"""How long it waits in all, which leaves the rest of a server's 10 seconds to others."""
_LOOK_SECONDS = 0.05

# Files, sockets and pipes of the process besides its connections.
_OTHER_DESCRIPTORS = 256
# What Granian reads ahead of a connection before anyone counts it.
_READ_AHEAD_BYTES = 64 * KIB


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


async def run_worker(
    settings: GatewaySettings,
    limits: Limits,
    queue: QueueSettings,
    sources: Sources,
    sink: FrameSink,
    *,
    stop: asyncio.Event,
    rates: Rates,
    observer: GatewayObserver | None = None,
    on_listening: Callable[[], None] = lambda: None,
    on_application: Callable[[Application], None] = lambda _: None,
    clock_ms: Callable[[], int] = wall_clock_ms,
    ids: Uuid7 | None = None,
) -> None:
    """Serve until `stop` is set, then answer what is in flight and return.

    `on_application` is given the running application, whose sources and limits can be replaced (`reload`). Raises
    StartRefused when the port can't be had, SettingsInvalid when the certificate can't be used.
    """
    address = probe_port(settings.host, settings.port)
    application = Application(
        settings, limits, queue, sources, sink, rates=rates, clock_ms=clock_ms, ids=ids or Uuid7()
    )
    on_application(application)

    def listening() -> None:
        let_connections_inherit(settings.port)
        on_listening()

    target = _Target(application, listening)
    server = _server(settings, limits, target, address, take_descriptors(settings.connections_max))
    serving = asyncio.create_task(server.serve(), name="granian")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    beside = (
        asyncio.create_task(_hand_over_counts(application, observer), name="counts"),
        asyncio.create_task(shut_silent(settings.port, limits.request_seconds_max), name="silence"),
    )
    try:
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            # Its own words may hold a trace of its inside.
            raise StartRefused(f"the HTTP server ended by itself on port {settings.port}")
        await _leave(server, serving, application)
    finally:
        for task in (*beside, stopping, serving):
            task.cancel()
        await asyncio.gather(*beside, stopping, serving, return_exceptions=True)
        application.close()
        if observer is not None:
            application.counts.hand_to(observer)


def probe_port(host: str, port: int) -> str:
    """The address that a host's name stands for. Raises StartRefused when the port can't be had there.

    Other workers' sockets don't matter: they share the port.
    """
    try:
        family, kind, _, _, found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(found)
    except OSError as error:  # socket.gaierror is one.
        raise StartRefused(f"port {port} of {host} can't be had: {error.strerror}") from None
    return str(found[0])


def take_descriptors(connections_max: int) -> int:
    """Raise RLIMIT_NOFILE for so many connections; how many there can be, which is fewer where the system says so."""
    wanted = connections_max + _OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        for new_soft, new_hard in ((wanted, max(hard, wanted)), (min(hard, wanted), hard)):
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (new_soft, new_hard))
                break
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections_max
    log.warning("gateway.fewer_connections", connections_max=connections_max, descriptors_max=soft)
    return max(1, soft - _OTHER_DESCRIPTORS)


class _Target:
    """What Granian calls."""

    def __init__(self, application: Application, on_listening: Callable[[], None]) -> None:
        self._on_listening = on_listening
        self.__rsgi__ = application.__rsgi__

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # Granian listens in the same turn of the loop that calls this.
        loop.call_soon(self._on_listening)


def _server(settings: GatewaySettings, limits: Limits, target: _Target, address: str, connections_max: int) -> Server:
    try:
        return Server(
            target,
            address=address,
            port=settings.port,
            interface=Interfaces.RSGI,
            http=HTTPModes.auto,
            websockets=False,
            backlog=BACKLOG,
            backpressure=connections_max,
            runtime_blocking_threads=1,
            http1_settings=HTTP1Settings(
                header_read_timeout=1000 * limits.request_seconds_max, max_buffer_size=_READ_AHEAD_BYTES
            ),
            http2_settings=HTTP2Settings(
                initial_connection_window_size=4 * _READ_AHEAD_BYTES,
                initial_stream_window_size=2 * _READ_AHEAD_BYTES,
                # Senders may begin 100 before they have read this (RFC 9113, section 5.1.2).
                max_concurrent_streams=100,
                max_headers_size=_READ_AHEAD_BYTES,
            ),
            # It has nothing to say that we don't.
            log_enabled=False,
            ssl_cert=_readable(settings.tls_cert, "gateway.tls_cert"),
            ssl_key=_readable(settings.tls_key, "gateway.tls_key"),
            ssl_protocol_min=SSLProtocols.tls12,
        )
    except OSError as error:  # ssl.SSLError is one.
        raise SettingsInvalid(
            f"gateway.tls_cert, gateway.tls_key: expected a certificate chain and its key ({type(error).__name__})"
        ) from None


def _readable(path: Path | None, key: str) -> Path | None:
    if path is not None:
        try:
            path.open("rb").close()
        except OSError as error:
            raise SettingsInvalid(f"{key}: expected a file that can be read: {error.strerror}") from None
    return path


async def _leave(server: Server, serving: asyncio.Task[None], application: Application) -> None:
    """Answer what is in flight; then go, whoever keeps a connection open."""
    began = time.monotonic()
    application.begin_stop()
    log.info("gateway.stopping", in_flight=application.in_flight)
    server.stop()  # type: ignore[no-untyped-call]
    quiet_since = began
    while not serving.done():
        await asyncio.wait((serving,), timeout=_LOOK_SECONDS)
        now = time.monotonic()
        if application.in_flight:
            quiet_since = now
        if now - quiet_since > QUIET_SECONDS or now - began > LEAVE_SECONDS:
            break
        if now - began > ARRIVAL_SECONDS:
            application.cut_off()
    log.info("gateway.stopped", seconds=time.monotonic() - began, left_behind=application.in_flight)


async def _hand_over_counts(application: Application, observer: GatewayObserver | None) -> None:
    while observer is not None:
        await asyncio.sleep(COUNTS_SECONDS)
        application.counts.hand_to(observer)
