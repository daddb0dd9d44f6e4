"""From a case's request to the bytes that are sent."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Literal, Protocol

import brotli
import msgspec
import zstandard

from counterfoil.conformance.cases import Coding, Raw, Request
from counterfoil.conformance.expressions import evaluate
from counterfoil.conformance.templates import TemplateInvalid, Values, render, render_text

API = "/api/v1"


class Prepared(msgspec.Struct, frozen=True):
    """A request, ready to be sent as often as needed."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


class PreparedRaw(msgspec.Struct, frozen=True):
    """A request that is written onto the socket as it stands."""

    head: bytes
    pieces: tuple[bytes, ...]
    cut: bool
    drip_seconds: int
    copies: int


def prepare(request: Request, values: Values, each: tuple[str, ...] = ()) -> Prepared | PreparedRaw:
    """The bytes of a request. Raises TemplateInvalid or ExpressionInvalid when the case is written wrongly."""
    if request.raw is not None:
        return _prepare_raw(request.raw, values)
    path, blocks = _path_and_body(request, values, each)
    body = b"".join(_compressed(blocks, request.compress, request.level))
    if request.damage is not None:
        body = _damaged(body, request.damage)
    headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "counterfoil-conformance"}
    if body or request.body is not None:
        headers["Content-Type"] = "application/json"
    if request.compress is not None:
        headers["Content-Encoding"] = request.compress
    return Prepared(request.method, path, _overridden(headers, request.headers), body)


def _path_and_body(request: Request, values: Values, each: tuple[str, ...]) -> tuple[str, Iterator[bytes]]:
    token = "{{test_token}}" if request.test_token else "{{token}}"
    if request.track is not None:
        path, blocks = "/track", render(_with_token(token, request.track), values)
    elif request.identify is not None:
        path, blocks = "/identify", render(_with_token(token, request.identify), values)
    elif request.row is not None:
        words = each or ("",)
        path, blocks = (
            "/batch",
            _batch(token, [(request.row, values.with_verbatim(each=word)) for word in words], values),
        )
    elif request.rows is not None:
        path, blocks = "/batch", _batch(token, [(row, values) for row in request.rows], values)
    else:
        path, blocks = "/batch", render(request.body or "", values)
    return request.path or API + path, blocks


def _with_token(token: str, members: str) -> str:
    before, brace, behind = members.partition("{")
    if not brace:
        raise TemplateInvalid("track and identify are written as an object")
    comma = "" if behind.lstrip().startswith("}") else ", "
    return f'{before}{{"token": "{token}"{comma}{behind}'


def _batch(token: str, rows: list[tuple[str, Values]], values: Values) -> Iterator[bytes]:
    yield from render(f'{{"token": "{token}", "events": [', values)
    for index, (row, row_values) in enumerate(rows):
        if index:
            yield b", "
        yield from render(row, row_values)
    yield b"]}"


def _compressed(blocks: Iterator[bytes], coding: Coding | None, level: int | None) -> Iterator[bytes]:
    if coding is None:
        yield from blocks
    elif coding == "br":
        br = brotli.Compressor(quality=1 if level is None else level)
        for block in blocks:
            yield br.process(block)
        yield br.finish()
    else:
        other = _compressor(coding, 1 if level is None else level)
        for block in blocks:
            yield other.compress(block)
        yield other.flush()


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


def _compressor(coding: Literal["gzip", "deflate", "zstd"], level: int) -> _Compressor:
    if coding == "zstd":
        compressor: _Compressor = zstandard.ZstdCompressor(level=level).compressobj()
        return compressor
    return zlib.compressobj(level, zlib.DEFLATED, zlib.MAX_WBITS | (16 if coding == "gzip" else 0))


def _damaged(body: bytes, damage: Literal["cut", "flip", "tail"]) -> bytes:
    if damage == "cut":
        return body[: len(body) * 3 // 4]
    if damage == "tail":
        return body + b"xyz"
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 0xFF]) + body[middle + 1 :]


def _overridden(headers: dict[str, str], own: Mapping[str, str | Literal[False]]) -> tuple[tuple[str, str], ...]:
    named = {name.lower() for name in own}
    kept = [(name, value) for name, value in headers.items() if name.lower() not in named]
    return (*kept, *((name, value) for name, value in own.items() if value is not False))


def _prepare_raw(raw: Raw, values: Values) -> PreparedRaw:
    pieces = [b"".join(render(piece, values)) for piece in raw.pieces]
    sized = values.with_numbers(length=sum(map(len, pieces)))
    head = "".join(render_text(line, sized) + "\r\n" for line in raw.head) + ("" if raw.open_head else "\r\n")
    if raw.chunked:
        pieces = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces]
        if not raw.cut:
            pieces.append(b"0\r\n\r\n")
    drip_seconds = evaluate(raw.drip_seconds, values.numbers)
    return PreparedRaw(head.encode(), tuple(pieces), raw.cut, drip_seconds, raw.copies)
