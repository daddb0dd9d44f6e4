"""Inflating of request bodies, piece by piece, so that whoever asks can stop before a bomb has gone off.

    gzip, x-gzip   RFC 1952, several members too
    deflate        RFC 1950 (zlib), and RFC 1951 alone, which some senders mean by it
    zstd           RFC 8878, several frames too; windows up to 8 MiB (RFC 9659)
    br             RFC 7932

No piece is larger than PIECE_BYTES_MAX, whatever the ratio: zlib and brotli are told how much they may give;
zstandard can't be, so it is fed so little that all its blocks together stay below.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

import brotli
import zstandard

PIECE_BYTES_MAX = 8 * 1024 * 1024
_PIECE_BYTES = 256 * 1024
_FEED_BYTES = 64 * 1024
_GZIP = 31
_ZLIB = 15
_DEFLATE = -15
_ZSTD_WINDOW_BYTES_MAX = 8 * 1024 * 1024
# A block of zstd is at least 4 bytes and gives at most 128 KiB, so this much gives 8 MiB.
_ZSTD_FEED_BYTES = 256
# A sender joins a few; a million of them, empty, would take seconds to begin and end.
_MEMBERS_MAX = 1024


class DamagedCompression(Exception):
    """The body does not inflate, or ends too early."""


Inflate = Callable[[bytes], Iterator[bytes]]


def inflater(encoding: str) -> Inflate | None:
    """What inflates a Content-Encoding; None when it is not spoken here."""
    return _INFLATERS.get(encoding)


def _inflate_gzip(body: bytes) -> Iterator[bytes]:
    return _inflate_zlib(body, _GZIP)


def _inflate_deflate(body: bytes) -> Iterator[bytes]:
    has_zlib_header = len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
    return _inflate_zlib(body, _ZLIB if has_zlib_header else _DEFLATE)


def _inflate_zlib(body: bytes, window_bits: int) -> Iterator[bytes]:
    stream = zlib.decompressobj(window_bits)
    member_count = 1
    for start in range(0, len(body), _FEED_BYTES):
        fed = body[start : start + _FEED_BYTES]
        while fed:
            if stream.eof:
                member_count += 1
                if window_bits != _GZIP or member_count > _MEMBERS_MAX:
                    raise DamagedCompression
                stream = zlib.decompressobj(window_bits)
            try:
                piece = stream.decompress(fed, _PIECE_BYTES)
            except zlib.error:
                raise DamagedCompression from None
            if piece:
                yield piece
            fed = stream.unused_data if stream.eof else stream.unconsumed_tail
    # What zlib still holds after the last byte went in comes out when asked for it.
    while not stream.eof and (piece := stream.decompress(b"", _PIECE_BYTES)):
        yield piece
    if not stream.eof:
        raise DamagedCompression


def _inflate_zstd(body: bytes) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES_MAX)
    stream = decompressor.decompressobj()
    frame_count = 1
    pieces: list[bytes] = []
    pieces_bytes = 0
    for start in range(0, len(body), _ZSTD_FEED_BYTES):
        fed = body[start : start + _ZSTD_FEED_BYTES]
        while fed:
            if stream.eof:
                frame_count += 1
                if frame_count > _MEMBERS_MAX:
                    raise DamagedCompression
                stream = decompressor.decompressobj()
            try:
                piece = stream.decompress(fed)
            except zstandard.ZstdError:
                raise DamagedCompression from None
            pieces.append(piece)
            pieces_bytes += len(piece)
            fed = stream.unused_data if stream.eof else b""
        if pieces_bytes >= _PIECE_BYTES:
            yield from pieces
            pieces, pieces_bytes = [], 0
    yield from pieces
    if not stream.eof:
        raise DamagedCompression


def _inflate_brotli(body: bytes) -> Iterator[bytes]:
    stream = brotli.Decompressor()
    try:
        for start in range(0, len(body), _FEED_BYTES):
            piece = stream.process(body[start : start + _FEED_BYTES], output_buffer_limit=_PIECE_BYTES)
            yield piece
            while piece and not stream.can_accept_more_data():
                piece = stream.process(b"", output_buffer_limit=_PIECE_BYTES)
                yield piece
        while not stream.is_finished():
            piece = stream.process(b"", output_buffer_limit=_PIECE_BYTES)
            if not piece:
                raise DamagedCompression
            yield piece
    except brotli.error:
        raise DamagedCompression from None


_INFLATERS: dict[str, Inflate] = {
    "gzip": _inflate_gzip,
    "x-gzip": _inflate_gzip,
    "deflate": _inflate_deflate,
    "zstd": _inflate_zstd,
    "br": _inflate_brotli,
}
SPOKEN_ENCODINGS = ("gzip", "deflate", "zstd", "br")
