"""Inflating: what was deflated comes back in bounded pieces, and what is damaged is told."""

import gzip
import zlib
from collections.abc import Callable

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from counterfoil.gateway.inflating import PIECE_BYTES_MAX, DamagedCompression, inflater


def raw_deflate(body: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(body) + stream.flush()


def zstd_without_size(body: bytes) -> bytes:
    stream = zstandard.ZstdCompressor().compressobj()
    return stream.compress(body) + stream.flush()


DEFLATERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("x-gzip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "raw deflate": ("deflate", raw_deflate),
    "zstd": ("zstd", zstandard.ZstdCompressor().compress),
    "zstd without size": ("zstd", zstd_without_size),
    "br": ("br", lambda body: brotli.compress(body, quality=4)),
}
MEMBERS = ("gzip", "zstd")

every_encoding = pytest.mark.parametrize("kind", DEFLATERS)


def inflated(kind: str, body: bytes) -> bytes:
    inflate = inflater(DEFLATERS[kind][0])
    assert inflate is not None
    return b"".join(inflate(body))


@every_encoding
@given(body=st.one_of(st.binary(max_size=2000), st.builds(bytes.__mul__, st.binary(max_size=50), st.integers(0, 5000))))
def test_a_deflated_body_comes_back(kind: str, body: bytes) -> None:
    """Whatever it holds, empty or not, dense or not."""
    assert inflated(kind, DEFLATERS[kind][1](body)) == body


@every_encoding
@given(data=st.data())
def test_a_body_that_ends_early_is_damaged(kind: str, data: st.DataObject) -> None:
    """Cut anywhere, it never passes for whole."""
    deflated = DEFLATERS[kind][1](data.draw(st.binary(max_size=500)))
    with pytest.raises(DamagedCompression):
        inflated(kind, deflated[: data.draw(st.integers(0, len(deflated) - 1))])


@every_encoding
def test_bytes_behind_the_end_are_damage(kind: str) -> None:
    """What follows a whole body and is no second one is not passed over."""
    with pytest.raises(DamagedCompression):
        inflated(kind, DEFLATERS[kind][1](b"abc") + b"behind")


@pytest.mark.parametrize("kind", ["gzip", "deflate", "zstd"])
def test_a_flipped_byte_is_damage(kind: str) -> None:
    """The formats that carry a checksum of the content find a change of it."""
    body = bytes(range(256)) * 4
    deflate = zstandard.ZstdCompressor(write_checksum=True).compress if kind == "zstd" else DEFLATERS[kind][1]
    deflated = bytearray(deflate(body))
    deflated[len(deflated) // 2] ^= 1
    with pytest.raises(DamagedCompression):
        inflated(kind, bytes(deflated))


@pytest.mark.parametrize("kind", MEMBERS)
def test_several_members_are_one_body(kind: str) -> None:
    """gzip and zstd may be joined from several."""
    deflate = DEFLATERS[kind][1]
    assert inflated(kind, deflate(b"a") + deflate(b"") + deflate(b"b")) == b"ab"


@pytest.mark.parametrize("kind", MEMBERS)
def test_a_million_empty_members_are_refused(kind: str) -> None:
    """Each costs time and gives nothing."""
    with pytest.raises(DamagedCompression):
        inflated(kind, DEFLATERS[kind][1](b"") * 100_000)


@every_encoding
def test_a_bomb_goes_off_in_pieces(kind: str) -> None:
    """No piece is larger than promised, so that whoever asks can stop after any."""
    inflate = inflater(DEFLATERS[kind][0])
    assert inflate is not None
    inflated_bytes = 0
    for piece in inflate(DEFLATERS[kind][1](bytes(64 * 1024 * 1024))):
        assert len(piece) <= PIECE_BYTES_MAX
        inflated_bytes += len(piece)
    assert inflated_bytes == 64 * 1024 * 1024


def test_a_window_larger_than_the_standard_allows_is_damage() -> None:
    """A zstd frame could ask for a window of gigabytes; 8 MiB is what RFC 9659 allows."""
    parameters = zstandard.ZstdCompressionParameters(window_log=24)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    with pytest.raises(DamagedCompression):
        inflated("zstd", stream.compress(b"x" * 100) + stream.flush())


@pytest.mark.parametrize("encoding", ["identity", "compress", "GZIP", "gzip, br", ""])
def test_other_encodings_are_not_spoken(encoding: str) -> None:
    """Names are given in lower case, one alone."""
    assert inflater(encoding) is None
