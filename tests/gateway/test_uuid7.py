"""Ids by RFC 9562: version and variant in their places, the time in front, and no two alike."""

import os
import uuid

from hypothesis import given
from hypothesis import strategies as st

from counterfoil.gateway.uuid7 import Uuid7, uuid_text


@given(st.integers(0, 2**48 - 1))
def test_an_id_holds_its_time_version_and_variant(now_ms: int) -> None:
    """The first 48 bits are the milliseconds, the version is 7, the variant that of the RFC."""
    made = uuid.UUID(bytes=Uuid7().next(now_ms))
    assert made.int >> 80 == now_ms
    assert made.version == 7
    assert made.variant == uuid.RFC_4122


@given(st.lists(st.integers(0, 2**48 - 1), unique=True))
def test_ids_sort_by_time(times_ms: list[int]) -> None:
    """An id of a later millisecond is larger, as bytes and as text."""
    ids = Uuid7()
    made = {now_ms: ids.next(now_ms) for now_ms in times_ms}
    assert [made[now_ms] for now_ms in sorted(made)] == sorted(made.values())
    assert [uuid_text(made[now_ms]) for now_ms in sorted(made)] == sorted(map(uuid_text, made.values()))


def test_no_two_ids_of_a_millisecond_are_alike() -> None:
    """Ten thousand ids of one millisecond differ, over many draws of randomness."""
    ids = Uuid7()
    assert len({ids.next(1) for _ in range(10_000)}) == 10_000


def test_every_random_bit_is_used() -> None:
    """All ones and all zeros from the outside come out in the 74 random bits, and only there."""
    ones = int.from_bytes(Uuid7(lambda count: b"\xff" * count).next(0), "big")
    zeros = int.from_bytes(Uuid7(bytes).next(0), "big")
    assert (ones ^ zeros).bit_count() == 74
    assert zeros == 0x7 << 76 | 0b10 << 62


@given(st.integers(0, 2**48 - 1))
def test_the_text_of_an_id_is_the_usual_one(now_ms: int) -> None:
    """The text is what the standard library prints."""
    packed = Uuid7(os.urandom).next(now_ms)
    assert uuid_text(packed) == str(uuid.UUID(bytes=packed))
