"""The writer: what it flushes together, what it refuses, and what it does when the disk fails."""

from __future__ import annotations

import asyncio
import errno
import subprocess
import sys
import textwrap
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from counterfoil.errors import CounterfoilError, DiskReserveReached, FlushFailed, QueueRefused
from counterfoil.files import Files, RealFiles
from counterfoil.positions import FramePosition
from counterfoil.queue import writer as writer_module
from counterfoil.queue.frame import FrameDraft, sealed_bytes
from counterfoil.queue.segment import SegmentFile, segment_numbers
from counterfoil.queue.settings import QueueSettings
from counterfoil.queue.writer import FlushFacts, SegmentWriter
from tests.faults.files import ANY, FaultyFiles
from tests.queue.drafts import draft
from tests.queue.lives import read_all, segment_path

NO_RESERVE = QueueSettings(reserve_bytes=0)
PATIENCE_SECONDS = 120


class GatedFiles(FaultyFiles):
    """Files whose fdatasync waits while the gate is shut."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.is_waiting = threading.Event()

    def fdatasync(self, descriptor: int) -> None:
        self.is_waiting.set()
        assert self.gate.wait(PATIENCE_SECONDS)
        super().fdatasync(descriptor)


def run_with_writer(
    root: Path,
    files: Files,
    use: Callable[[SegmentWriter], Awaitable[None]],
    settings: QueueSettings = NO_RESERVE,
    observe: Callable[[FlushFacts], None] = lambda facts: None,
) -> None:
    async def run() -> None:
        one = SegmentWriter.open(root / "queue", files, settings, quarantine=root / "quarantine", observe=observe)
        try:
            await asyncio.wait_for(use(one), PATIENCE_SECONDS)
        finally:
            await asyncio.wait_for(one.close(), PATIENCE_SECONDS)

    asyncio.run(run())


async def outcomes(writer: SegmentWriter, *drafts: FrameDraft) -> list[FramePosition | BaseException]:
    return await asyncio.gather(*writer.append(drafts), return_exceptions=True)


async def until_it_takes_rows(writer: SegmentWriter) -> None:
    while writer.refusal() is not None:
        await asyncio.sleep(0.005)


async def shut(files: GatedFiles, writer: SegmentWriter) -> asyncio.Future[FramePosition]:
    """A frame whose flush waits at the gate."""
    files.gate.clear()
    files.is_waiting.clear()
    (future,) = writer.append([draft("at the gate")])
    await asyncio.to_thread(files.is_waiting.wait, PATIENCE_SECONDS)
    return future


def test_what_waits_at_the_same_time_shares_a_flush(tmp_path: Path) -> None:
    """Frames of many turns that wait for a flush become durable by one more write and one more fdatasync."""
    files = GatedFiles()

    async def use(writer: SegmentWriter) -> None:
        first = await shut(files, writer)
        waiting = []
        for i in range(50):
            waiting += writer.append([draft(f"{i}")])
            await asyncio.sleep(0)
        before = files.calls.copy()
        files.gate.set()
        await asyncio.gather(first, *waiting)
        assert files.calls["append"] == before["append"] + 1
        assert files.calls["fdatasync"] == before["fdatasync"] + 2

    run_with_writer(tmp_path, files, use)
    assert len(read_all(tmp_path).names) == 51


def test_what_is_flushed_is_held_no_longer(tmp_path: Path) -> None:
    """A writer that waits for the next frame has let go of the last ones: up to FLUSH_BYTES of memory a worker."""

    async def use(writer: SegmentWriter) -> None:
        one = draft("held")
        references = sys.getrefcount(one)
        await asyncio.gather(*writer.append([one]))
        while sys.getrefcount(one) > references:
            await asyncio.sleep(0.005)

    run_with_writer(tmp_path, RealFiles(), use)


def test_nothing_is_acknowledged_before_its_flush(tmp_path: Path) -> None:
    """While the flush has not ended no future is done and no reader sees the frame (I2, I3)."""
    files = GatedFiles()

    async def use(writer: SegmentWriter) -> None:
        future = await shut(files, writer)
        assert b"at the gate" in segment_path(tmp_path, 1).read_bytes()
        assert read_all(tmp_path).names == []
        assert not future.done()
        files.gate.set()
        await future
        assert read_all(tmp_path).names == ["at the gate"]

    run_with_writer(tmp_path, files, use)


@pytest.mark.parametrize("operation", ["fdatasync", "append"])
def test_after_a_failed_flush_a_fresh_segment_begins(tmp_path: Path, operation: str) -> None:
    """The frames of a failed flush fail and are never read; the file is never written again (I4)."""
    files = FaultyFiles()

    async def use(writer: SegmentWriter) -> None:
        await asyncio.gather(*writer.append([draft("a")]))
        flushed = segment_path(tmp_path, 1).stat().st_size
        files.break_down(operation)
        for failed in await outcomes(writer, draft("b"), draft("c")):
            assert isinstance(failed, FlushFailed)
            assert failed.retryable
            assert "EIO" in str(failed)
        left = segment_path(tmp_path, 1).read_bytes()
        assert len(left) > flushed
        (position,) = await asyncio.gather(*writer.append([draft("d")]))
        assert position.segment == 2
        assert segment_path(tmp_path, 1).read_bytes() == left
        header = SegmentFile(segment_path(tmp_path, 2), writer.directory_id, position.segment).header()
        assert (header.previous, header.previous_flushed) == (1, flushed)
        assert writer.refusal() is None

    run_with_writer(tmp_path, files, use)
    found = read_all(tmp_path)
    assert (found.names, found.damages) == (["a", "d"], [])


@pytest.mark.parametrize("operation", ["create", "append", "sync_dir"])
def test_where_no_segment_can_be_begun_rows_are_refused(tmp_path: Path, operation: str) -> None:
    """Without a segment the queue refuses, and takes rows again when the disk does (I9)."""
    files = FaultyFiles()

    async def use(writer: SegmentWriter) -> None:
        await asyncio.gather(*writer.append([draft("a")]))
        files.break_down({"fdatasync", operation}, times=None, code=errno.ENOSPC)
        (failed,) = await outcomes(writer, draft("b"))
        assert isinstance(failed, FlushFailed)
        while writer.refusal() is None:
            await asyncio.sleep(0.005)
        for refused in await outcomes(writer, draft("c"), draft("d")):
            assert isinstance(refused, QueueRefused)
        files.heal()
        await until_it_takes_rows(writer)
        await asyncio.gather(*writer.append([draft("e")]))

    run_with_writer(tmp_path, files, use)
    found = read_all(tmp_path)
    assert (found.names, found.damages) == (["a", "e"], [])


def test_a_refusal_names_the_first_cause(tmp_path: Path) -> None:
    """While nothing can be begun the refusal says what failed first, not what failed after it."""
    files = FaultyFiles()

    async def use(writer: SegmentWriter) -> None:
        files.break_down("fdatasync", times=None, code=errno.EDQUOT)
        await outcomes(writer, draft("a"))
        while (refusal := writer.refusal()) is None:
            await asyncio.sleep(0.005)
        files.break_down("create", times=None, code=errno.ENOSPC)
        before = files.calls["create"]
        while files.calls["create"] < before + 2:
            await asyncio.sleep(0.005)
        assert str(writer.refusal()) == str(refusal) == "the flush failed (EDQUOT)"
        files.heal()
        await until_it_takes_rows(writer)

    run_with_writer(tmp_path, files, use)


def test_a_disk_that_flushes_nothing_is_not_filled_with_segments(tmp_path: Path) -> None:
    """Where headers can be flushed and frames can't, segments are begun at a delay that grows, not one a request."""

    class HeadersOnly(FaultyFiles):
        def append(self, descriptor: int, data: bytes) -> None:
            if len(data) > 128:
                raise OSError(errno.ENOSPC, "No space left on device")
            super().append(descriptor, data)

    async def use(writer: SegmentWriter) -> None:
        for i in range(500):
            (failed,) = await outcomes(writer, draft(f"{i}"))
            assert isinstance(failed, FlushFailed | QueueRefused)

    run_with_writer(tmp_path, HeadersOnly(), use)
    assert len(segment_numbers(tmp_path / "queue" / "1")) < 20


def test_the_reserve_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the reserve whole requests are refused before a byte is written; above it rows are taken again (I9)."""
    monkeypatch.setattr(writer_module, "LOOK_SECONDS", 0.01)

    class Disk(RealFiles):
        free = 10_000_000

        def free_bytes(self, path: Path) -> int:
            return self.free

        def disk_bytes(self, path: Path) -> int:
            return 1_000_000_000

    disk = Disk()

    async def use(writer: SegmentWriter) -> None:
        await asyncio.gather(*writer.append([draft("a")]))
        disk.free = 4_000_000
        while writer.refusal() is None:
            await asyncio.sleep(0.005)
        before = segment_path(tmp_path, 1).stat().st_size
        for refused in await outcomes(writer, draft("b"), draft("c")):
            assert isinstance(refused, DiskReserveReached)
        assert segment_path(tmp_path, 1).stat().st_size == before
        disk.free = 6_000_000
        await until_it_takes_rows(writer)
        await asyncio.gather(*writer.append([draft("d")]))

    run_with_writer(tmp_path, disk, use, QueueSettings(reserve_bytes=5_000_000, reserve_percent=5.0))
    assert read_all(tmp_path).names == ["a", "d"]
    run_with_writer(tmp_path, disk, lambda writer: outcomes(writer, draft("e")), QueueSettings(reserve_percent=0.5))  # type: ignore[arg-type,return-value]
    assert read_all(tmp_path).names == ["a", "d", "e"]


def test_what_waits_is_bounded(tmp_path: Path) -> None:
    """More than may wait is refused at once; a request larger than that is taken when nothing waits (I9)."""
    files = GatedFiles()
    settings = QueueSettings(reserve_bytes=0, waiting_bytes_max=1024 * 1024)

    async def use(writer: SegmentWriter) -> None:
        first = await shut(files, writer)
        waiting = writer.append([draft("half", row_bytes=600_000)])
        assert writer.refusal() is None
        for refused in await outcomes(writer, draft("other half", row_bytes=600_000), draft("small")):
            assert isinstance(refused, QueueRefused)
        waiting += writer.append([draft("fits", row_bytes=300_000)])
        assert writer.waiting_bytes <= settings.waiting_bytes_max
        files.gate.set()
        await asyncio.gather(first, *waiting)
        assert writer.waiting_bytes == 0
        await asyncio.gather(*writer.append([draft("large", row_bytes=2_000_000)]))

    run_with_writer(tmp_path, files, use, settings)
    assert read_all(tmp_path).names == ["at the gate", "half", "fits", "large"]


def test_each_frame_of_a_request_fails_by_itself(tmp_path: Path) -> None:
    """Of frames appended together those fail whose flush failed; the ones before and after are durable."""
    files = GatedFiles()

    async def use(writer: SegmentWriter) -> None:
        first = await shut(files, writer)
        large = [draft(name, row_bytes=writer_module.FLUSH_BYTES * 2 // 3) for name in ("b", "c", "d")]
        waiting = asyncio.gather(*writer.append(large), return_exceptions=True)
        await asyncio.sleep(0)
        files.break_down("append", at=2)
        files.gate.set()
        results = [await first, *await waiting]
        assert [isinstance(result, FlushFailed) for result in results] == [False, False, True, False]

    run_with_writer(tmp_path, files, use)
    found = read_all(tmp_path)
    assert (found.names, found.damages) == (["at the gate", "b", "d"], [])


def test_a_new_segment_begins_at_a_size(tmp_path: Path) -> None:
    """A segment that has reached its size is closed before the next flush; frames go on in the next (I8)."""
    settings = QueueSettings(reserve_bytes=0, segment_bytes=1024 * 1024)
    names = [f"{i}" for i in range(12)]

    async def use(writer: SegmentWriter) -> None:
        for name in names:
            await asyncio.gather(*writer.append([draft(name, row_bytes=300_000)]))

    run_with_writer(tmp_path, RealFiles(), use, settings)
    assert segment_numbers(tmp_path / "queue" / "1") == [1, 2, 3]
    found = read_all(tmp_path)
    assert (found.names, found.damages) == (names, [])


def test_flushes_are_observed(tmp_path: Path) -> None:
    """Each flush is told once, failed or not, and an observer that fails harms nobody."""
    seen: list[FlushFacts] = []
    files = FaultyFiles()

    def observe(facts: FlushFacts) -> None:
        seen.append(facts)
        raise RuntimeError("the observer's own fault")

    async def use(writer: SegmentWriter) -> None:
        await asyncio.gather(*writer.append([draft("a", row_count=3)]))
        files.break_down("fdatasync")
        await outcomes(writer, draft("b"))

    run_with_writer(tmp_path, files, use, observe=observe)
    assert [(facts.frame_count, facts.row_count, facts.is_failed) for facts in seen] == [(1, 3, False), (1, 1, True)]
    assert [facts.flushed_bytes for facts in seen] == [sealed_bytes(draft("a", row_count=3)), 0]


def test_closing_never_hangs_on_a_dead_disk(tmp_path: Path) -> None:
    """A writer whose disk fails at everything closes, answers who waits, and lets go of its directory (I7)."""
    files = FaultyFiles()

    async def run() -> None:
        writer = SegmentWriter.open(tmp_path / "queue", files, NO_RESERVE, quarantine=tmp_path / "quarantine")
        files.break_down(ANY, times=None)
        waiting = writer.append([draft("a"), draft("b")])
        await asyncio.wait_for(writer.close(), PATIENCE_SECONDS)
        for future in waiting:
            assert isinstance(future.exception(), CounterfoilError)
        files.heal()
        again = SegmentWriter.open(tmp_path / "queue", files, NO_RESERVE, quarantine=tmp_path / "quarantine")
        assert again.number == 1
        await again.close()

    asyncio.run(run())


def test_a_flush_thread_that_ends_refuses_for_good(tmp_path: Path) -> None:
    """Even a bug in the flush thread leaves no request waiting for ever."""

    class Bug(RealFiles):
        is_there = False

        def free_bytes(self, path: Path) -> int:
            if self.is_there:
                raise RuntimeError("a bug")
            return super().free_bytes(path)

    files = Bug()

    async def use(writer: SegmentWriter) -> None:
        files.is_there = True
        while writer.refusal() is None:
            await outcomes(writer, draft("a"))
            await asyncio.sleep(0.005)
        files.is_there = False
        (refused,) = await outcomes(writer, draft("b"))
        assert isinstance(refused, QueueRefused)

    run_with_writer(tmp_path, files, use)


def test_a_full_disk_at_start_refuses_and_recovers(tmp_path: Path) -> None:
    """A writer opens although no segment can be begun, refuses, and takes rows when there is room (I9)."""
    run_with_writer(tmp_path, RealFiles(), lambda writer: outcomes(writer, draft("a")))  # type: ignore[arg-type,return-value]
    files = FaultyFiles("create", times=None, code=errno.ENOSPC)

    async def use(writer: SegmentWriter) -> None:
        assert "ENOSPC" in str(writer.refusal())
        files.heal()
        await until_it_takes_rows(writer)
        await asyncio.gather(*writer.append([draft("b")]))

    run_with_writer(tmp_path, files, use)
    assert read_all(tmp_path).names == ["a", "b"]


def test_a_real_limit_on_file_size(tmp_path: Path) -> None:
    """Where the system itself cuts a write short those frames fail and the next go to a fresh segment (I4)."""
    program = """
        import asyncio, resource, sys
        from pathlib import Path
        from counterfoil.errors import FlushFailed
        from counterfoil.files import RealFiles
        from counterfoil.queue.settings import QueueSettings
        from counterfoil.queue.writer import SegmentWriter
        from tests.queue.drafts import draft

        async def main(root):
            settings = QueueSettings(reserve_bytes=0)
            writer = SegmentWriter.open(root / "queue", RealFiles(), settings, quarantine=root / "quarantine")
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            answers = []
            for name in "abc":
                answers += await asyncio.gather(*writer.append([draft(name, row_bytes=60_000)]), return_exceptions=True)
            print([isinstance(answer, FlushFailed) for answer in answers])
            await writer.close()

        asyncio.run(main(Path(sys.argv[1])))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[False, True, False]"
    found = read_all(tmp_path)
    assert (found.names, found.damages) == (["a", "c"], [])
