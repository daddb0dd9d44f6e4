"""Connections on which nothing goes on any more: the HTTP server keeps them for ever, and has only so many.

    a peer that is gone        asked by the kernel once it has been quiet for KEEPALIVE_SECONDS, then given up
    an answer nobody takes     given up by the kernel ANSWER_SECONDS after its reader took anything of it
    nothing said, or not even  shut here when `request_seconds_max` passed without another byte: before the HTTP server
    what kind of HTTP it is    knows the version it watches no time
    nothing said any more      shut here after QUIET_SECONDS: an HTTP/2 connection may be open without a request

The kernel's part is set on the sockets that listen, and accepted ones inherit it (tcp(7)). For the other part the
process's own descriptors are gone through: the HTTP server does not show its connections, but the kernel says of each
when it last received anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import structlog

KEEPALIVE_SECONDS = 60
ANSWER_SECONDS = 60
QUIET_SECONDS = 300.0
LOOK_SECONDS = 10.0

_DESCRIPTORS = "/proc/self/fd"
# Descriptors that are looked at in one turn of the loop: 1.5 ms.
_AT_ONCE = 128
# "PRI * HTTP/2.0…" (RFC 9113, section 3.4): with as many bytes the version is known.
_PREFACE_BYTES = 24
# struct tcp_info of linux/tcp.h: milliseconds since data was sent and received, and bytes received.
_INFO = struct.Struct("=44xI4xI72xQ")

log = structlog.get_logger()


class Traffic(NamedTuple):
    """What the kernel says of a connection."""

    sent_seconds: float
    """Since anything was sent; where nothing was, since it was accepted. So is the next."""
    received_seconds: float
    received_bytes: int


def traffic_of(connection: socket.socket) -> Traffic:
    """Raises OSError where it is none of TCP, struct.error where the kernel says less."""
    sent_ms, received_ms, received_bytes = _INFO.unpack(
        connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
    )
    return Traffic(sent_ms / 1000, received_ms / 1000, received_bytes)


def sockets_of(port: int, descriptors: Iterable[int]) -> Iterator[socket.socket]:
    """Those of this process's descriptors that are TCP sockets of a local port, each until the next is asked for.

    They are duplicates: what is shut is shut for both, and a descriptor that is closed and given to something else
    meanwhile is nobody's loss.
    """
    for descriptor in descriptors:
        duplicate = -1
        try:
            duplicate = os.dup(descriptor)
            found = socket.socket(fileno=duplicate)
        except OSError:  # Closed since, or no socket.
            if duplicate >= 0:
                os.close(duplicate)
            continue
        with found:
            if found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM:
                with contextlib.suppress(OSError):
                    if found.getsockname()[1] == port:
                        yield found


def own_descriptors() -> list[int]:
    """The open descriptors of this process."""
    try:
        # No paths made of them: there may be 16,000.
        return [int(name) for name in os.listdir(_DESCRIPTORS)]  # noqa: PTH208
    except OSError:  # /proc is not there, or hidden: connections are as the HTTP server keeps them.
        return []


def let_connections_inherit(port: int) -> None:
    """Have the kernel watch the connections that this process will accept on a port it listens on."""
    for listening in sockets_of(port, own_descriptors()):
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, ANSWER_SECONDS * 1000)


async def shut_silent(port: int, request_seconds_max: float) -> None:
    """Shut this process's silent connections of a port, until cancelled."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        descriptors = own_descriptors()
        shut_count = 0
        for start in range(0, len(descriptors), _AT_ONCE):
            for connection in sockets_of(port, descriptors[start : start + _AT_ONCE]):
                # Not connected any more, or a kernel that says less of it.
                with contextlib.suppress(OSError, struct.error):
                    if _is_silent(traffic_of(connection), request_seconds_max):
                        connection.shutdown(socket.SHUT_RDWR)
                        shut_count += 1
            await asyncio.sleep(0)
        if shut_count:
            log.info("gateway.silent_connections_shut", count=shut_count)


def _is_silent(traffic: Traffic, request_seconds_max: float) -> bool:
    if traffic.received_bytes < _PREFACE_BYTES and traffic.received_seconds > request_seconds_max:
        return True
    return min(traffic.received_seconds, traffic.sent_seconds) > QUIET_SECONDS
