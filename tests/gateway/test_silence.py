"""Connections on which nothing goes on any more are let go, and no others."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from counterfoil.contract.limits import Limits
from counterfoil.gateway import silence
from counterfoil.gateway.silence import own_descriptors, sockets_of
from tests.certificate import make_certificate
from tests.gateway.http2 import PREFACE, Http2Connection
from tests.gateway.server import TOKEN, RunningGateway, is_closed, read_answer, request_head, until

IMPATIENT = Limits(request_seconds_max=1)


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "LOOK_SECONDS", 0.05)


def accepted(gateway: RunningGateway, peer: socket.socket) -> Iterator[socket.socket]:
    """The gateway's end of a connection, while it has one."""
    for found in sockets_of(gateway.port, own_descriptors()):
        with contextlib.suppress(OSError):  # One that listens has no peer.
            if found.getpeername() == peer.getsockname():
                yield found


def quiet_seconds(gateway: RunningGateway, peer: socket.socket) -> float:
    (seconds,) = (min(silence.traffic_of(found)[:2]) for found in accepted(gateway, peer))
    return seconds


def takes(connection: socket.socket, request: bytes) -> bool:
    try:
        connection.sendall(request)
    except ConnectionError:
        return False
    return True


@pytest.mark.parametrize("said", [b"", b"P", PREFACE[:23]], ids=["nothing", "a letter", "half a preface"])
def test_who_does_not_say_what_it_wants_is_shut(tmp_path: Path, said: bytes) -> None:
    """A connection that says nothing, or begins to and stops, is closed when the time for a request is over."""
    with RunningGateway(tmp_path, limits=IMPATIENT) as gateway, gateway.connect() as connection:
        connection.sendall(said)
        assert is_closed(connection)


def test_a_handshake_that_stops_is_shut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So is one that begins TLS and stays there."""
    monkeypatch.setattr(silence, "QUIET_SECONDS", 1.0)
    cert, key = make_certificate(tmp_path)
    with RunningGateway(tmp_path, tls_cert=cert, tls_key=key) as gateway, gateway.connect() as connection:
        connection.sendall(bytes.fromhex("1603010200010001fc0303") + bytes(40))
        assert is_closed(connection)


def test_http2_without_a_request_is_shut_when_it_is_quiet_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection of HTTP/2 that has been answered may rest, but not for ever."""
    with RunningGateway(tmp_path, limits=IMPATIENT) as gateway, gateway.connect() as connection:
        http2 = Http2Connection(connection)
        assert http2.answers([http2.send("GET", "/livez")])
        until(lambda: quiet_seconds(gateway, connection) > 1.5 * IMPATIENT.request_seconds_max, "quiet")
        assert http2.answers([http2.send("GET", "/livez")])
        monkeypatch.setattr(silence, "QUIET_SECONDS", 1.0)
        while connection.recv(1024):
            pass


def test_an_answer_nobody_takes_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks and never reads loses the connection, and the worker what it held for it."""
    monkeypatch.setattr(silence, "ANSWER_SECONDS", 1)
    body = b'{"token":"%s","events":[%s]}' % (TOKEN.encode(), b",".join([b"7"] * 10_000))
    request = request_head("/api/v1/batch", f"content-length: {len(body)}") + body
    with RunningGateway(tmp_path) as gateway, gateway.connect() as connection:
        until(lambda: not takes(connection, request), "given up")


def test_the_kernel_asks_whether_a_peer_is_still_there(tmp_path: Path) -> None:
    """A peer that is gone without a word is found out: each accepted connection is kept alive and bounded."""
    with RunningGateway(tmp_path) as gateway, gateway.connect() as connection:
        connection.sendall(request_head("/livez", method="GET"))
        assert read_answer(connection).status == 200
        (mine,) = (
            (
                found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                found.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
                found.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
            )
            for found in accepted(gateway, connection)
        )
        assert mine == (1, silence.KEEPALIVE_SECONDS, silence.ANSWER_SECONDS * 1000)
