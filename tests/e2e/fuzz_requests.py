"""Requests that nobody would send: cases of the conformance kit, and rows that hypothesis made, broken at every level.

    body       values of its JSON put in the place of others, bytes turned over, cut, repeated, spliced
    coding     compressed, compressed and damaged, or said to be and not
    head       methods, paths and headers that fit or don't
    framing    in pieces, in chunks, with a length that lies; or no HTTP at all, HTTP/2 that breaks off included

What a connection sends follows from a number, so that a run can be played again and hypothesis can leave connections
out of an example. To draw each request from strategies takes some 30 ms, a hundred times what the server takes for it.

A request is sound when its HTTP holds: then there must be an answer, and it must be one of the API's.
"""

from __future__ import annotations

import json
import random
import re
import zlib
from collections.abc import Callable, Mapping, Sequence

import brotli
import msgspec
import zstandard
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded

from counterfoil.conformance.cases import shipped_sections
from counterfoil.conformance.requests import API, Prepared, prepare
from counterfoil.conformance.suite import DEFAULT_LIMITS, UNITS
from counterfoil.conformance.templates import Values
from tests.contract.test_row_rules import broken_texts
from tests.gateway.http2 import DATA, GOAWAY, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, WINDOW_UPDATE, frame

SECRET = "a-value-that-must-not-come-back"
ELSEWHERE = "http://other.example"
"""Before a path: HTTP lets a request name the whole URL, and a server answers for itself."""
REQUESTS_MAX = 16
SEED_BYTES_MAX = 64 * 1024
LARGE_BYTES = 2_200_000
"""More than a body that msgspec skims in any case."""


class FuzzedRequest(msgspec.Struct, frozen=True):
    """What is written onto a connection."""

    method: str
    path: str
    pieces: tuple[bytes, ...]
    """Head and body, in as many writes."""
    is_sound: bool
    """Its HTTP holds. Otherwise the connection's writing half is closed after it, and no answer is owed."""


class Seed(msgspec.Struct, frozen=True):
    """A request that is broken."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


def seeds_of(limits: Mapping[str, int], token: str, test_token: str, now_ms: int) -> list[Seed]:
    """The requests of the kit's cases for a server with these limits, but for the very large ones."""
    texts = {"token": token, "test_token": test_token, "unknown_token": "unknown", "secret": SECRET}
    texts |= {"host": "127.0.0.1", "base": API}
    numbers = {**DEFAULT_LIMITS, **limits, **UNITS, "now": now_ms}
    seeds = []
    for section in shipped_sections():
        for number, case in enumerate(section.case):
            if "slow" in case.needs:
                continue
            values = Values(texts, numbers, f"cf-{section.section}-{number}", case.parts)
            for request in (case.send, *(step.send for step in case.then if step.send)):
                if request.raw is not None:
                    continue
                prepared = prepare(request, values, section.words_of(case))
                assert isinstance(prepared, Prepared)
                if len(prepared.body) <= SEED_BYTES_MAX:
                    seeds.append(Seed(prepared.method, prepared.path, prepared.headers, prepared.body))
    return seeds


def row_texts(count: int, seed_number: int) -> list[bytes]:
    """Rows as the property tests of the contract make them, whole and broken."""
    found: list[bytes] = []

    @seeded(seed_number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(broken_texts)
    def keep(text: bytes) -> None:
        found.append(text)

    keep()
    return found


class Requests:
    """Makes what a connection sends of a number."""

    def __init__(self, seeds: Sequence[Seed], rows: Sequence[bytes], token: str) -> None:
        self._seeds = seeds
        self._rows = rows
        self._head = b'{"token":%b,"events":[' % json.dumps(token).encode()

    def of(self, number: int) -> list[FuzzedRequest]:
        """The requests that follow from this number, one after the other."""
        chance = random.Random(number)
        return [self._made(chance) for _ in range(chance.randrange(1, REQUESTS_MAX))]

    def _made(self, chance: random.Random) -> FuzzedRequest:
        seed = self._broken(chance) if chance.random() < 0.7 else self._batch(chance)
        request = _sent(chance, seed)
        return _unsound(chance, request) if chance.random() < 0.1 else request

    def _batch(self, chance: random.Random) -> Seed:
        """A /batch of made rows; now and then a very large one."""
        rows = chance.choices(self._rows, k=chance.randrange(1, 7))
        if chance.random() < 0.002:
            rows = rows * (LARGE_BYTES // sum(len(row) + 1 for row in rows))
        return Seed(
            "POST", f"{API}/batch", (("Content-Type", "application/json"),), self._head + b",".join(rows) + b"]}"
        )

    def _broken(self, chance: random.Random) -> Seed:
        """A case's request whose body went through some mutations, and whose coding may be another."""
        seed = chance.choice(self._seeds)
        body, headers = seed.body, seed.headers
        for _ in range(chance.randrange(5)):
            kind = chance.random()
            if kind < 0.6:
                body = self._with_value(chance, body)
            elif kind < 0.7:
                other = chance.choice(self._seeds).body
                body = body[: _place(chance, body)] + other[_place(chance, other) :]
            else:
                body = chance.choice((_repeated, _cut, _overwritten, _longer))(chance, body)
        if chance.random() < 0.25:
            coding, body = _coded(chance, body)
            headers = (*(pair for pair in headers if pair[0] != "Content-Encoding"), ("Content-Encoding", coding))
        return Seed(seed.method, seed.path, headers, body)

    def _with_value(self, chance: random.Random, body: bytes) -> bytes:
        """Another value, or another key, in the place of a string, a number or a word: what stays JSON gets further."""
        places = [found.span() for found in _VALUE.finditer(body)]
        if not places:
            return body
        start, end = chance.choice(places)
        value = chance.choice(_VALUES if chance.random() < 0.7 else self._rows)
        return body[:start] + value + body[end:]


# Bodies

_VALUE = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|true|false|null|\{\}|\[\]')

_VALUES: list[bytes] = [
    *(b"null", b"true", b"0", b"-0", b"-1", b"0.5", b"1e400", b"-1e400", b"1e-400", b"9007199254740993"),
    *(b"1500000000000.0", b"253402300800000", b"-62135596800001", b"9" * 400, b"9" * 5000, b"1" + b"0" * 310),
    *(b'""', b'" "', b'"\\ufeff x"', b'"\\ud800"', b'"\\ud83d\\ude00"', b'"\\u0000"', b'"\xff"', b'"\xc3"'),
    *(b'"\xed\xa0\x80"', b'"\xf4\x90\x80\x80"', b'"\\"', b'"\\x"', b'"\x00"', b"NaN", b"-Infinity", b"01"),
    *(b"{}", b"[]", b"[[[]]]", b'{"":{"":[{"":1}]}}', b'{"a":1,"a":{"a":2}}', b'"token"', b'"events"'),
    *(b'"eventProperties"', b'"custom_properties"', b'"time"', b'"distinctId"', b'"$identify"', b'"a.b"'),
    *(b'"%b"' % (b"x" * size) for size in (400, 401, 1001, 2001, 5001, 9000)),
    *(b"[" * depth + b"]" * depth for depth in (14, 16, 17, 200, 5000)),
    *(b'{"a":' * depth + b"1" + b"}" * depth for depth in (4, 5, 17, 200, 5000)),
    *(b"[" + b"1," * count + b"1]" for count in (9, 10, 250, 3000)),
    b"{" + b",".join(b'"k%d":%d' % (key, key) for key in range(21)) + b"}",
]


def _place(chance: random.Random, body: bytes) -> int:
    return chance.randint(0, len(body))


def _repeated(chance: random.Random, body: bytes) -> bytes:
    start = _place(chance, body)
    end = start + chance.randrange(200)
    return body[:end] + body[start:end] * chance.randrange(60) + body[end:]


def _cut(chance: random.Random, body: bytes) -> bytes:
    start = _place(chance, body)
    return body[:start] + body[start + chance.randrange(200) :]


def _overwritten(chance: random.Random, body: bytes) -> bytes:
    place, noise = _place(chance, body), chance.randbytes(chance.randrange(1, 5))
    return body[:place] + noise + body[place + len(noise) :]


def _longer(chance: random.Random, body: bytes) -> bytes:
    place, noise = _place(chance, body), chance.randbytes(chance.randrange(1, 9))
    return body[:place] + (noise if chance.random() < 0.5 else chance.choice(_VALUES)) + body[place:]


def _coded(chance: random.Random, body: bytes) -> tuple[str, bytes]:
    """A body in one of the codings, whole, damaged or not at all."""
    coding = chance.choice([*_CODINGS, *_CODINGS, "identity", "compress", "gzip, br", ""])
    coded = _CODINGS[coding](body) if coding in _CODINGS and chance.random() < 0.9 else body
    if chance.random() < 0.3:
        coded = chance.choice((_overwritten, _cut, _longer, _repeated))(chance, coded)
    return chance.choice((coding, coding, coding.upper(), f" {coding} ")), coded


_CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda body: zlib.compress(body, 1, zlib.MAX_WBITS | 16),
    "deflate": lambda body: zlib.compress(body, 1),
    "br": lambda body: brotli.compress(body, quality=1),
    "zstd": lambda body: zstandard.ZstdCompressor(level=1).compress(body),
}


# Heads and framing

_METHODS = ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "QUERY", "post")
_PATHS = (
    *(f"{API}{path}" for path in ("/batch", "/track", "/identify", "/limits", "/openapi", "/batch/", "", "/%00")),
    *(f"{API}/experiments/assignments/k", f"{API}/track?token=x", "/livez", "/readyz", "/", "/batch", "//", "/%ff"),
    *("/" + "x" * 3000, f"{API}/../livez", "*", f"{ELSEWHERE}{API}/batch"),
)
_HEADERS = (
    *(("Content-Type", text) for text in ("APPLICATION/JSON; x=y", "text/plain", "application/json;", ";", "")),
    *(("Accept", "*/*"), ("Accept-Encoding", "gzip"), ("Origin", "https://a.example"), ("Expect", "100-continue")),
    *(("X-Stainless-Lang", text) for text in ("python", "", "x" * 3000, "\xe4")),
    *(("X-Stainless-Package-Version", text) for text in ("2.1.0", " ", "\xff")),
    *(("Connection", "close"), ("X-Request-Id", "mine"), ("Authorization", f"Bearer {SECRET}"), ("Cookie", SECRET)),
)


def _sent(chance: random.Random, seed: Seed) -> FuzzedRequest:
    """A request as bytes, its head and framing changed in ways that HTTP allows."""
    method = chance.choice(_METHODS) if chance.random() < 0.05 else seed.method
    path = chance.choice(_PATHS) if chance.random() < 0.1 else seed.path
    headers = list(seed.headers)
    for name, value in chance.sample(_HEADERS, chance.choice((0, 0, 1, 2))):
        headers = [pair for pair in headers if pair[0] != name] + [(name, value)]
    cuts = sorted(_place(chance, seed.body) for _ in range(chance.choice((0, 0, 1, 3))))
    pieces = [seed.body[start:end] for start, end in zip([0, *cuts], [*cuts, len(seed.body)], strict=True)]
    if chance.random() < 0.2:
        headers.append(("Transfer-Encoding", "chunked"))
        pieces = [*(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece), b"0\r\n\r\n"]
    elif seed.body or method in ("POST", "PUT", "PATCH"):
        headers.append(("Content-Length", str(len(seed.body))))
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *(f"{name}: {value}" for name, value in headers)]
    head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
    return FuzzedRequest(method, path, (head, *pieces), is_sound=True)


def _unsound(chance: random.Random, request: FuzzedRequest) -> FuzzedRequest:
    """Bytes that are a request no more, or never were."""
    written = b"".join(request.pieces)
    kind = chance.randrange(5)
    if kind == 0:
        written = written[: _place(chance, written)]
    elif kind == 1:
        lie = chance.choice([b"0", b"1", b"-5", b"many", b"99999999999999999999", b"70000"])
        written = re.sub(rb"Content-Length: \d+", b"Content-Length: " + lie, written)
    elif kind == 2:
        written = chance.randbytes(chance.randrange(200))
    elif kind == 3:
        written = _http2(chance)
    else:
        head, _, body = written.partition(b"\r\n\r\n")
        written = _overwritten(chance, _longer(chance, head)) + b"\r\n\r\n" + body
    return FuzzedRequest(request.method, request.path, (written,), is_sound=False)


def _http2(chance: random.Random) -> bytes:
    """A connection of HTTP/2, with frames of any kind in any order."""
    kinds = (DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, 9, 77)
    frames = [
        frame(chance.choice(kinds), chance.randrange(256), chance.randrange(6), chance.randbytes(chance.randrange(40)))
        for _ in range(chance.randrange(9))
    ]
    return PREFACE + frame(SETTINGS, 0, 0) + b"".join(frames)
