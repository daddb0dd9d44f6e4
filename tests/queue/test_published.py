"""What is published is what was stored last, whole, whoever looks and when."""

from __future__ import annotations

import multiprocessing
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterfoil.files import RealFiles
from counterfoil.positions import DirectoryId, FramePosition, SegmentNumber
from counterfoil.queue.published import PUBLISHED_BYTES, PublishedPlace, PublishedView
from tests.queue.lives import flip, overwrite

DIRECTORY = DirectoryId(b"directry")


def place(segment: int, offset: int) -> FramePosition:
    return FramePosition(DIRECTORY, SegmentNumber(segment), offset)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "flushed"


@pytest.fixture
def writer(path: Path) -> PublishedPlace:
    return PublishedPlace(path, RealFiles(), DIRECTORY)


def test_the_newest_place_is_seen(path: Path, writer: PublishedPlace) -> None:
    """A view that was open before sees every store."""
    view = PublishedView(path, DIRECTORY)
    assert view.place() is None
    for segment, offset in ((1, 64), (1, 128), (2, 64), (2, 1 << 40)):
        writer.publish(SegmentNumber(segment), offset)
        assert view.place() == place(segment, offset)
    writer.close()
    assert view.place() == place(2, 1 << 40)


@given(at=st.integers(0, PUBLISHED_BYTES - 1), mask=st.integers(1, 255))
def test_a_torn_store_leaves_the_place_before(at: int, mask: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever byte of the file is wrong, what is seen was published, and is at most one flush old (I3)."""
    path = tmp_path_factory.getbasetemp() / "torn"
    path.unlink(missing_ok=True)
    writer = PublishedPlace(path, RealFiles(), DIRECTORY)
    for offset in (64, 128, 192):
        writer.publish(SegmentNumber(1), offset)
    flip(path, at, mask)
    assert PublishedView(path, DIRECTORY).place() in (place(1, 128), place(1, 192))
    # A later life never stores over the only good slot.
    later = PublishedPlace(path, RealFiles(), DIRECTORY)
    later.publish(SegmentNumber(2), 64)
    assert PublishedView(path, DIRECTORY).place() == place(2, 64)


@pytest.mark.parametrize("content", [b"", bytes(PUBLISHED_BYTES), b"\xff" * PUBLISHED_BYTES, bytes(7), bytes(4096)])
def test_garbage_is_no_place(path: Path, content: bytes) -> None:
    """A file that was cut, zeroed or overwritten publishes nothing, and is made anew by the next store."""
    path.write_bytes(content)
    assert PublishedView(path, DIRECTORY).place() is None
    PublishedPlace(path, RealFiles(), DIRECTORY).publish(SegmentNumber(3), 64)
    assert PublishedView(path, DIRECTORY).place() == place(3, 64)


def test_the_place_of_another_directory_is_none(path: Path, writer: PublishedPlace) -> None:
    """A published file that was copied from another directory says nothing of this one."""
    writer.publish(SegmentNumber(1), 64)
    assert PublishedView(path, DirectoryId(b"another!")).place() is None


def test_a_file_that_goes_away_is_noticed(path: Path, writer: PublishedPlace) -> None:
    """Views and writer look at the file that stands there now, not at the one they mapped."""
    view = PublishedView(path, DIRECTORY)
    writer.publish(SegmentNumber(1), 64)
    assert view.place() == place(1, 64)
    path.unlink()
    assert view.place() is None
    writer.publish(SegmentNumber(1), 128)
    assert view.place() == place(1, 128)
    overwrite(path, b"")
    assert view.place() is None


def _publish_many(path: Path, is_done: Event) -> None:
    writer = PublishedPlace(path, RealFiles(), DIRECTORY)
    for count in range(1, 5_001):
        writer.publish(SegmentNumber(1), 8 * count)
    is_done.set()


def test_another_process_sees_whole_places_in_order(path: Path) -> None:
    """A view in another process sees only what was published, and never an older place after a newer one."""
    context = multiprocessing.get_context("forkserver")
    is_done = context.Event()
    process = context.Process(target=_publish_many, args=(path, is_done))
    process.start()
    view = PublishedView(path, DIRECTORY)
    last = place(1, 0)
    while not is_done.is_set():
        seen = view.place()
        if seen is not None:
            assert seen >= last
            assert seen.offset % 8 == 0
            last = seen
    process.join()
    assert process.exitcode == 0
    assert view.place() == place(1, 8 * 5_000)
