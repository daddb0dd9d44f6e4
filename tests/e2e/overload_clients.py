"""Who sends in the overload campaign: senders that keep account of every answer, and those who mean no good.

`run_clients` is the whole of a client's process: it opens its connections, plays until it is told to stop, and returns
what it came to. A sender sends again at once, whatever was answered: no sender of the real world is worse.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import random
import resource
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from threading import Event

import msgspec

from tests.e2e.server import TOKEN
from tests.gateway.http2 import END_HEADERS, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, frame

ANSWER_SECONDS_MAX = 60
LATENCIES_MAX = 200_000
IDS_A_SENDER = 1_000_000_000
DESCRIPTORS = 24_000
CONNECT_SECONDS = 0.001
HEAD = "POST /api/v1/batch HTTP/1.1\r\nhost: overload\r\ncontent-type: application/json\r\n"


class ClientPlan(msgspec.Struct, frozen=True):
    """What one client's process does."""

    name: str
    port: int
    first_sender: int
    senders: dict[str, int] = {}
    """Connections by the kind of request (`KINDS`)."""
    nuisances: dict[str, int] = {}
    """Connections by name (`NUISANCES`)."""
    body_bytes_max: int = 0
    rows_max: int = 0
    """What the server says that a request may have: beyond it, and there alone, 413 is the answer."""


class ClientResult(msgspec.Struct):
    """What a client's process came to."""

    statuses: Counter[int] = msgspec.field(default_factory=Counter)
    """Answers by status; 0 is a connection that ended without one."""
    accepted: list[tuple[int, int]] = msgspec.field(default_factory=list)
    """Acknowledged rows: first number and count."""
    accepted_seconds: dict[str, list[float]] = msgspec.field(default_factory=lambda: {kind: [] for kind in KINDS})
    """By the kind of request, from its first byte to the end of its answer."""
    refused_seconds: list[float] = msgspec.field(default_factory=list)
    without_retry_after: int = 0
    unforeseen: Counter[str] = msgspec.field(default_factory=Counter)
    """Answers that no overload explains, by status and kind of request."""
    connections: Counter[str] = msgspec.field(default_factory=Counter)
    """Opened, by who opened them."""


def a_row(number: int, text_chars: int) -> bytes:
    """The row of a number; it names it."""
    return b'{"event":"Purchase","distinctId":"o-%d","eventProperties":{"number":%d,"text":"%s"}}' % (
        number,
        number,
        b"x" * text_chars,
    )


def a_batch(number: int, row_count: int, text_chars: int) -> bytes:
    rows = b",".join(a_row(number + index, text_chars) for index in range(row_count))
    return b'{"token":"%s","events":[%s]}' % (TOKEN.encode(), rows)


KINDS: dict[str, tuple[int, int, bool]] = {
    "one": (1, 20, False),
    "hundred": (100, 60, False),
    "long": (10, 2_000, False),
    "large": (1_000, 2_000, False),
    "squeezed": (1_000, 200, True),
    "endless": (10_001, 0, False),
}
"""Rows of a request, characters of each, whether it is compressed."""


class Clients:
    """The connections of one process."""

    def __init__(self, plan: ClientPlan, stop: Event) -> None:
        self._plan = plan
        self._stop = stop
        self.is_over = False
        self.result = ClientResult()

    async def play(self) -> None:
        """Open everything, and go on until the stop."""
        tasks: list[asyncio.Task[None]] = []
        sender = self._plan.first_sender
        for kind, count in self._plan.senders.items():
            for _ in range(count):
                tasks.append(asyncio.create_task(self._send_on(kind, sender)))
                sender += 1
        for name, count in self._plan.nuisances.items():
            tasks += [asyncio.create_task(self._annoy(name, number)) for number in range(count)]
        while not self._stop.is_set():
            await asyncio.sleep(0.1)
        self.is_over = True
        senders = tasks[: sum(self._plan.senders.values())]
        if senders:
            await asyncio.wait(senders, timeout=ANSWER_SECONDS_MAX)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _send_on(self, kind: str, sender: int) -> None:
        row_count, text_chars, is_compressed = KINDS[kind]
        number = sender * IDS_A_SENDER
        writer: asyncio.StreamWriter | None = None
        while not self.is_over:
            body = a_batch(number, row_count, text_chars)
            head = HEAD
            if is_compressed:
                body, head = gzip.compress(body, 1), HEAD + "content-encoding: gzip\r\n"
            request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
            try:
                if writer is None:
                    reader, writer = await self.connect(kind)
                began = time.monotonic()
                writer.write(request)
                status, headers, text = await asyncio.wait_for(read_answer(reader), ANSWER_SECONDS_MAX)
            except (OSError, EOFError, TimeoutError):
                self.result.statuses[0] += 1
                if writer is not None:
                    writer.close()
                    writer = None
                continue
            seconds = time.monotonic() - began
            is_too_large = row_count > self._plan.rows_max or len(body) > self._plan.body_bytes_max
            self._count(kind, status, headers, text, seconds, (number, row_count), is_too_large=is_too_large)
            if headers.get("connection") == "close":
                writer.close()
                writer = None
            # Whatever became of it: a number is sent once, so that what was delivered can be told from it.
            number += row_count
        if writer is not None:
            writer.close()

    def _count(
        self,
        kind: str,
        status: int,
        headers: dict[str, str],
        text: bytes,
        seconds: float,
        rows: tuple[int, int],
        *,
        is_too_large: bool,
    ) -> None:
        result = self.result
        result.statuses[status] += 1
        if status in (429, 500):
            keep(result.refused_seconds, seconds)
            result.without_retry_after += not 1 <= int(headers.get("retry-after", 0)) <= 60
        elif is_too_large:
            if status != 413:
                result.unforeseen[f"{status} {kind}, too large"] += 1
        elif status == 200:
            result.accepted.append(rows)
            keep(result.accepted_seconds[kind], seconds)
        elif status == 207:
            results = msgspec.json.decode(text)["results"]
            result.accepted += [(rows[0] + each["index"], 1) for each in results if each["success"]]
            keep(result.accepted_seconds[kind], seconds)
        else:
            result.unforeseen[f"{status} {kind}"] += 1

    async def _annoy(self, name: str, number: int) -> None:
        # Thousands of connections at once would keep this process busy with nothing else.
        await asyncio.sleep(number * CONNECT_SECONDS)
        while not self.is_over:
            with contextlib.suppress(OSError, EOFError, TimeoutError):
                reader, writer = await self.connect(name)
                try:
                    await NUISANCES[name](reader, writer, number)
                finally:
                    writer.close()
            await asyncio.sleep(0.05)

    async def connect(self, who: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        connection = await asyncio.open_connection("127.0.0.1", self._plan.port, limit=1 << 22)
        self.result.connections[who] += 1
        return connection


def keep(seconds: list[float], value: float) -> None:
    """Keep every value, or by chance as many of them as there is room for."""
    if len(seconds) < LATENCIES_MAX:
        seconds.append(value)
    else:
        seconds[random.randrange(LATENCIES_MAX)] = value


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the next answer; EOFError when the connection ends before it does."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    return int(lines[0].split()[1]), headers, await reader.readexactly(int(headers.get("content-length", 0)))


Nuisance = Callable[[asyncio.StreamReader, asyncio.StreamWriter, int], Awaitable[None]]


async def idle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
    """Says nothing, or half a head, and stays."""
    if number % 2:
        writer.write(HEAD.encode())
    await reader.read()


async def slow_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
    """A head letter by letter."""
    for letter in HEAD:
        writer.write(letter.encode())
        await asyncio.sleep(0.5)


async def slow_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
    """Most of a body at once, the rest of it never."""
    writer.write(f"{HEAD}content-length: 2000000\r\n\r\n".encode() + b" " * 1_900_000)
    await reader.read()


async def slow_reader(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
    """Asks for the longest answers that there are, one behind the other, and reads none."""
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    body = b'{"token":"%s","events":[%s]}' % (TOKEN.encode(), b",".join([b"7"] * 10_000))
    request = f"{HEAD}content-length: {len(body)}\r\n\r\n".encode() + body
    for _ in range(20):
        writer.write(request)
        await asyncio.wait_for(writer.drain(), 20)
    await asyncio.sleep(20)


async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
    """A request that ends in the middle, by a reset or by an end."""
    body = a_batch(0, 50, 100)
    request = f"{HEAD}content-length: {len(body)}\r\n\r\n".encode() + body
    # Only what can't be taken for a whole one, so that nothing of it is ever acknowledged.
    writer.write(request[: random.randrange(1, len(request) - 1)])
    await asyncio.sleep(random.random() / 20)
    if number % 2:
        connection = writer.get_extra_info("socket")
        connection.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SOL_SOCKET, SO_LINGER: the close is a reset.
    writer.close()


async def half_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
    """Half a body, and then an end of this side alone: the other stays open."""
    writer.write(f"{HEAD}content-length: 20000\r\n\r\n".encode() + b" " * 10_000)
    writer.write_eof()
    await reader.read()


async def rapid_reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
    """Streams of HTTP/2 that are opened and reset at once, by the thousand."""
    writer.write(PREFACE + frame(SETTINGS, 0, 0))
    for stream in range(1, 4001, 2):
        writer.write(frame(HEADERS, END_HEADERS, stream, HEADERS_BLOCK) + frame(RST_STREAM, 0, stream, b"\0\0\0\x08"))
    await asyncio.wait_for(writer.drain(), 5)
    await asyncio.wait_for(reader.read(), 5)


async def endless_headers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
    """A block of HTTP/2 headers that goes on and on."""
    writer.write(PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, 0, 1, HEADERS_BLOCK))
    for _ in range(200):
        writer.write(frame(9, 0, 1, b"\0\x01a\x7f\0" + b"a" * 127 + b"\0" * 0))
        await asyncio.wait_for(writer.drain(), 5)
    await asyncio.wait_for(reader.read(), 5)


async def pings(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
    """Pings of HTTP/2 whose answers nobody reads."""
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(PREFACE + frame(SETTINGS, 0, 0))
    for _ in range(2000):
        writer.write(frame(PING, 0, 0, bytes(8)) * 20)
        await asyncio.wait_for(writer.drain(), 5)


async def held_streams(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
    """As many streams of HTTP/2 as are let, each with a body that does not end."""
    writer.write(PREFACE + frame(SETTINGS, 0, 0))
    for stream in range(1, 257, 2):
        writer.write(frame(HEADERS, END_HEADERS, stream, HEADERS_BLOCK) + frame(0, 0, stream, b" " * 1000))
    await reader.read()


def _literal(name: bytes, value: bytes) -> bytes:
    return b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value


HEADERS_BLOCK = b"".join(
    _literal(name, value)
    for name, value in (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":authority", b"overload"),
        (b":path", b"/api/v1/batch"),
        (b"content-type", b"application/json"),
    )
)

NUISANCES: dict[str, Nuisance] = {
    "idle": idle,
    "slow head": slow_head,
    "slow body": slow_body,
    "slow reader": slow_reader,
    "cut": cut,
    "half closed": half_closed,
    "rapid reset": rapid_reset,
    "endless headers": endless_headers,
    "pings": pings,
    "held streams": held_streams,
}


def run_clients(plan: ClientPlan, stop: Event) -> ClientResult:
    """Play a plan in this process until `stop` is set; what it came to."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    clients = Clients(plan, stop)
    asyncio.run(clients.play())
    return clients.result
