"""Segments closed on purpose: by their writer when it is asked, or where nobody writes by who asks."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from counterfoil.errors import QueueRefused
from counterfoil.files import RealFiles
from counterfoil.positions import SegmentNumber
from counterfoil.queue import writer as writer_module
from counterfoil.queue.reader import QueueReader
from counterfoil.queue.rolling import ROLL_NAME, ask_for_roll
from counterfoil.queue.segment import segment_numbers
from counterfoil.queue.writer import SegmentWriter
from tests.faults.files import FaultyFiles
from tests.queue.drafts import draft
from tests.queue.lives import flip, life, quarantined, read_all, reader, segment_path, the_directory
from tests.queue.test_writer import outcomes, run_with_writer

ONE, TWO = SegmentNumber(1), SegmentNumber(2)


@pytest.fixture(autouse=True)
def looking_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "LOOK_SECONDS", 0.01)


def request(root: Path) -> Path:
    return root / "queue" / "1" / ROLL_NAME


async def until_rolled(source: QueueReader, number: SegmentNumber) -> None:
    while not source.roll(the_directory(source), number):
        await asyncio.sleep(0.005)


def test_a_writer_rolls_when_it_is_told(tmp_path: Path) -> None:
    """What was acknowledged lies in the segment before; a segment that holds nothing is gone on with."""

    async def use(writer: SegmentWriter) -> None:
        for name in ("a", "b"):
            (position,) = await asyncio.gather(*writer.append([draft(name)]))
            writer.roll()
            while len(segment_numbers(tmp_path / "queue" / "1")) == position.segment:
                await asyncio.sleep(0.005)
            writer.roll()

    run_with_writer(tmp_path, RealFiles(), use)
    assert segment_numbers(tmp_path / "queue" / "1") == [1, 2, 3]
    assert read_all(tmp_path).names == ["a", "b"]


def test_a_live_segment_is_closed_on_request(tmp_path: Path) -> None:
    """Another process asks by a file, until the segment is closed; then there is no request any more."""

    async def use(writer: SegmentWriter) -> None:
        source = reader(tmp_path)
        assert source.live_segments() == {}
        await outcomes(writer, draft("a"))
        directory = the_directory(source)
        assert source.live_segments() == {directory: ONE}
        assert not source.roll(directory, ONE)
        await until_rolled(source, ONE)
        assert source.live_segments() == {}
        while request(tmp_path).exists():
            await asyncio.sleep(0.005)
        await outcomes(writer, draft("b"))
        assert source.live_segments() == {directory: TWO}
        assert source.roll(directory, ONE)
        assert not request(tmp_path).exists()

    run_with_writer(tmp_path, RealFiles(), use)
    assert read_all(tmp_path).names == ["a", "b"]


def test_a_busy_writer_heeds_a_request_too(tmp_path: Path) -> None:
    """Rows that never cease do not keep it from being asked, and none of them is lost."""

    async def use(writer: SegmentWriter) -> None:
        source = reader(tmp_path)
        count = 0
        while count < 3 or not source.roll(the_directory(source), ONE):
            (position,) = await outcomes(writer, draft(f"{count}"))
            assert not isinstance(position, BaseException)
            count += 1

    run_with_writer(tmp_path, RealFiles(), use)
    names = read_all(tmp_path).names
    assert names == [f"{i}" for i in range(len(names))]


def test_a_segment_without_frames_needs_no_roll(tmp_path: Path) -> None:
    """A request that finds nothing to close is done, and no number is used for it."""

    async def use(writer: SegmentWriter) -> None:
        source = reader(tmp_path)
        assert source.roll(the_directory(source), ONE)
        ask_for_roll(tmp_path / "queue" / "1", RealFiles())
        while request(tmp_path).exists():
            await asyncio.sleep(0.005)

    run_with_writer(tmp_path, RealFiles(), use)
    assert segment_numbers(tmp_path / "queue" / "1") == [1]


def test_where_nobody_writes_it_is_done_at_once(tmp_path: Path) -> None:
    """What an earlier life left is closed as the next life would close it, and that one goes on after it."""
    with life(tmp_path) as one:
        one.write("a")
        one.write("b")
    flip(tmp_path / "queue" / "1" / "flushed", 20)
    flip(tmp_path / "queue" / "1" / "flushed", 90)
    with segment_path(tmp_path, 1).open("ab") as file:
        file.write(b"a torn tail")
    source = reader(tmp_path)
    ask_for_roll(tmp_path / "queue" / "1", RealFiles())
    assert source.roll(the_directory(source), ONE)
    assert not request(tmp_path).exists()
    assert source.live_segments() == {}
    assert any(b"a torn tail" in data for data in quarantined(tmp_path).values())
    with life(tmp_path) as one:
        assert one.tail.number == 3
        one.write("c")
    assert read_all(tmp_path).names == ["a", "b", "c"]


def test_a_writer_that_dies_has_closed_its_segment(tmp_path: Path) -> None:
    """A request that nobody heeded is none any more for the next writer: it begins a fresh segment anyway."""
    with life(tmp_path) as one:
        one.write("a")
        source = reader(tmp_path)
        assert not source.roll(the_directory(source), ONE)
    assert request(tmp_path).exists()

    async def use(writer: SegmentWriter) -> None:
        while request(tmp_path).exists():
            await asyncio.sleep(0.005)

    run_with_writer(tmp_path, RealFiles(), use)
    assert segment_numbers(tmp_path / "queue" / "1") == [1, 2]


def test_a_writer_that_can_not_roll_is_asked_until_it_can(tmp_path: Path) -> None:
    """Where no fresh segment can be begun the writer refuses rows and the request stays; then both are done."""
    files = FaultyFiles()

    async def use(writer: SegmentWriter) -> None:
        source = reader(tmp_path)
        await outcomes(writer, draft("a"))
        files.break_down("create", times=None)
        assert not source.roll(the_directory(source), ONE)
        while writer.refusal() is None:
            await asyncio.sleep(0.005)
        assert isinstance((await outcomes(writer, draft("b")))[0], QueueRefused)
        assert request(tmp_path).exists()
        files.heal()
        await until_rolled(source, ONE)
        while request(tmp_path).exists():
            await asyncio.sleep(0.005)

    run_with_writer(tmp_path, files, use)
    assert read_all(tmp_path).names == ["a"]
