"""What every queue does: one suite for `FrameSink` and `FrameSource`, run on each pair of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from counterfoil.errors import FrameDamaged, QueueRefused
from counterfoil.files import Files, RealFiles
from counterfoil.positions import DirectoryId, FramePosition, SegmentNumber
from counterfoil.queue import FrameSink, FrameSource
from counterfoil.queue.frame import Frame, FrameDraft
from counterfoil.queue.reader import QueueReader
from counterfoil.queue.settings import QueueSettings
from counterfoil.queue.writer import SegmentWriter
from tests.faults.files import FaultyFiles
from tests.queue.drafts import draft, name_of

READ_BYTES = 64 * 1024


class SegmentQueue:
    """Segment files below a directory."""

    def __init__(self, root: Path, files: Callable[[], Files]) -> None:
        self._root = root
        self._files = files

    def sink(self) -> FrameSink:
        settings = QueueSettings(reserve_bytes=0)
        return SegmentWriter.open(self._root / "queue", self._files(), settings, quarantine=self._root / "quarantine")

    def source(self) -> FrameSource:
        return QueueReader(self._root / "queue", self._files(), self._root / "quarantine")


IMPLEMENTATIONS = {
    "segment files": lambda root: SegmentQueue(root, RealFiles),
    "segment files that could fail": lambda root: SegmentQueue(root, FaultyFiles),
}


@pytest.fixture(params=IMPLEMENTATIONS)
def queue(request: pytest.FixtureRequest, tmp_path: Path) -> SegmentQueue:
    return IMPLEMENTATIONS[request.param](tmp_path)


@asynccontextmanager
async def writing(queue: SegmentQueue) -> AsyncIterator[FrameSink]:
    sink = queue.sink()
    try:
        yield sink
    finally:
        await sink.close()


async def append(sink: FrameSink, drafts: Sequence[FrameDraft]) -> list[FramePosition]:
    return await asyncio.gather(*sink.append(drafts))


def append_all(queue: SegmentQueue, drafts: Sequence[FrameDraft]) -> list[FramePosition]:
    """Append drafts in one life of a sink."""

    async def run() -> list[FramePosition]:
        async with writing(queue) as sink:
            return await append(sink, drafts)

    return asyncio.run(run())


def read_all(source: FrameSource, bytes_max: int = READ_BYTES) -> dict[DirectoryId, list[Frame]]:
    """Every frame of every directory, read to the durable end."""
    found: dict[DirectoryId, list[Frame]] = {}
    for directory in source.directories():
        at = None
        frames = found.setdefault(directory, [])
        while True:
            result = source.read(directory, at, bytes_max)
            assert not result.damages
            assert not result.is_gone
            frames += result.frames
            if result.next == at:
                break
            at = result.next
        assert at == source.durable_end(directory)
    return found


def test_what_was_appended_is_read_in_order(queue: SegmentQueue) -> None:
    """Frames come back as they were drafted, in the order in which they were appended."""
    names = [f"frame-{i}" for i in range(20)]
    positions = append_all(queue, [draft(name, row_count=1 + i % 3) for i, name in enumerate(names)])
    (frames,) = read_all(queue.source()).values()
    assert [name_of(frame) for frame in frames] == names
    assert [frame.position for frame in frames] == positions
    assert positions == sorted(positions)
    assert [frame.facts.row_count for frame in frames] == [1 + i % 3 for i in range(20)]


def test_a_position_fetches_its_frame(queue: SegmentQueue) -> None:
    """Every position that was given fetches the same frame, in any order."""
    names = [f"frame-{i}" for i in range(10)]
    positions = append_all(queue, [draft(name) for name in names])
    source = queue.source()
    for name, position in reversed(list(zip(names, positions, strict=True))):
        frame = source.fetch(position)
        assert (name_of(frame), frame.position) == (name, position)


def test_a_second_life_goes_on_after_the_first(queue: SegmentQueue) -> None:
    """What a later life appends is read after what an earlier one did."""
    append_all(queue, [draft("first")])
    append_all(queue, [draft("second")])
    (frames,) = read_all(queue.source()).values()
    assert [name_of(frame) for frame in frames] == ["first", "second"]


def test_two_writers_at_once_have_a_directory_each(queue: SegmentQueue) -> None:
    """Writers that live at the same time never share a directory, and both are read."""

    async def run() -> None:
        async with writing(queue) as one, writing(queue) as other:
            (first,), (second,) = await append(one, [draft("one")]), await append(other, [draft("other")])
            assert first.directory != second.directory

    asyncio.run(run())
    found = read_all(queue.source())
    assert sorted(name_of(frame) for frames in found.values() for frame in frames) == ["one", "other"]


def test_a_reader_follows_a_writer(queue: SegmentQueue) -> None:
    """A frame can be read as soon as it is acknowledged, from where the reader stopped."""

    async def run() -> None:
        source = queue.source()
        at = None
        async with writing(queue) as sink:
            for i in range(20):
                (position,) = await append(sink, [draft(f"frame-{i}")])
                result = source.read(position.directory, at, READ_BYTES)
                assert [name_of(frame) for frame in result.frames] == [f"frame-{i}"]
                at = result.next
                assert source.read(position.directory, at, READ_BYTES).next == at

    asyncio.run(run())


@pytest.mark.parametrize("bytes_max", [1, 500, 5_000])
def test_reading_is_bounded_and_yet_moves_on(queue: SegmentQueue, bytes_max: int) -> None:
    """A result holds no more than was asked for, and never less than one frame while there is one."""
    names = [f"frame-{i}" for i in range(12)]
    (directory,) = {p.directory for p in append_all(queue, [draft(name, row_bytes=100) for name in names])}
    source = queue.source()
    at, found = None, []
    while True:
        result = source.read(directory, at, bytes_max)
        if result.next == at:
            break
        at = result.next
        found += [name_of(frame) for frame in result.frames]
        assert len(result.frames) == 1 or sum(frame.frame_bytes for frame in result.frames) <= bytes_max
    assert found == names


def test_a_frame_larger_than_any_buffer_passes(queue: SegmentQueue) -> None:
    """A frame of several megabytes is written whole and read whole, with small ones beside it."""
    drafts = [draft("small"), draft("large", row_count=3, row_bytes=5_000_000), draft("last")]
    append_all(queue, drafts)
    (frames,) = read_all(queue.source()).values()
    assert [(name_of(frame), len(frame.rows)) for frame in frames] == [
        (name, one.rows_bytes) for name, one in zip(["small", "large", "last"], drafts, strict=True)
    ]


def test_many_requests_wait_at_once(queue: SegmentQueue) -> None:
    """Appends of many tasks are all acknowledged, each with its own position."""

    async def run() -> list[FramePosition]:
        async with writing(queue) as sink:
            answers = await asyncio.gather(*(append(sink, [draft(f"{i}.0"), draft(f"{i}.1")]) for i in range(200)))
        return [position for answer in answers for position in answer]

    positions = asyncio.run(run())
    assert len(set(positions)) == 400
    source = queue.source()
    assert [name_of(source.fetch(position)) for position in positions] == [
        f"{i}.{j}" for i in range(200) for j in (0, 1)
    ]


def test_what_waits_is_flushed_before_closing(queue: SegmentQueue) -> None:
    """Frames that wait when a sink is closed are durable, and what comes later is refused."""

    async def run() -> None:
        sink = queue.sink()
        assert sink.refusal() is None
        waiting = sink.append([draft("waiting")])
        await sink.close()
        await sink.close()
        assert waiting[0].done()
        assert isinstance(sink.refusal(), QueueRefused)
        (refused,) = sink.append([draft("late")])
        with pytest.raises(QueueRefused):
            await refused

    asyncio.run(run())
    (frames,) = read_all(queue.source()).values()
    assert [name_of(frame) for frame in frames] == ["waiting"]


def test_a_request_that_went_away_harms_nobody(queue: SegmentQueue) -> None:
    """A future that its request cancelled leaves the frame durable and the others answered."""

    async def run() -> None:
        async with writing(queue) as sink:
            gone, kept = sink.append([draft("gone"), draft("kept")])
            gone.cancel()
            await kept

    asyncio.run(run())
    (frames,) = read_all(queue.source()).values()
    assert [name_of(frame) for frame in frames] == ["gone", "kept"]


def test_what_was_never_there_is_told_apart(queue: SegmentQueue) -> None:
    """A position whose directory or segment is not there is damage, never another frame."""
    (position,) = append_all(queue, [draft("only")])
    source = queue.source()
    for wrong in (
        position._replace(directory=DirectoryId(b"elsewhere"[:8])),
        position._replace(segment=SegmentNumber(77)),
    ):
        with pytest.raises(FrameDamaged):
            source.fetch(wrong)
    with pytest.raises(FrameDamaged):
        source.read(DirectoryId(b"elsewhere"[:8]), None, READ_BYTES)


def test_an_empty_queue_has_no_directories(queue: SegmentQueue) -> None:
    """Before the first writer there is nothing, and that is no error."""
    assert queue.source().directories() == {}
