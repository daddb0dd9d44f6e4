"""Writers and readers in processes of their own."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

from counterfoil.files import RealFiles
from counterfoil.positions import DirectoryId, FramePosition
from counterfoil.queue.settings import QueueSettings
from counterfoil.queue.writer import SegmentWriter
from tests.queue.drafts import draft, name_of
from tests.queue.lives import reader

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])

SETTINGS = QueueSettings(reserve_bytes=0, segment_bytes=1024 * 1024)


def _write_until_killed(root: Path, prefix: str, acknowledged: Connection) -> None:
    """Append for ever, four requests at a time; tell the names that were acknowledged."""

    async def client(writer: SegmentWriter, which: int) -> None:
        for i in range(1_000_000):
            name = f"{prefix}.{which}.{i}"
            await asyncio.gather(*writer.append([draft(name, row_bytes=2_000)]))
            acknowledged.send(name)

    async def run() -> None:
        writer = SegmentWriter.open(root / "queue", RealFiles(), SETTINGS, quarantine=root / "quarantine")
        await asyncio.gather(*(client(writer, which) for which in range(4)))

    asyncio.run(run())


class WriterProcess:
    """A process that writes until it is killed."""

    def __init__(self, root: Path, prefix: str) -> None:
        self.acknowledged, theirs = CONTEXT.Pipe(duplex=False)
        self._process = CONTEXT.Process(target=_write_until_killed, args=(root, prefix, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.names: list[str] = []

    def wait_for(self, count: int) -> None:
        """Until so many more frames were acknowledged."""
        for _ in range(count):
            assert self.acknowledged.poll(120)
            self.names.append(self.acknowledged.recv())

    def kill(self) -> None:
        """SIGKILL, and what it had told by then."""
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.join()
        try:
            while self.acknowledged.poll():
                self.names.append(self.acknowledged.recv())
        except EOFError:
            pass


class Follower:
    """A reader that goes on from where it was, over every directory."""

    def __init__(self, root: Path) -> None:
        self._source = reader(root)
        self._at: dict[DirectoryId, FramePosition] = {}
        self.names: list[str] = []

    def follow(self) -> None:
        """Read what is new."""
        for directory in self._source.directories():
            while True:
                result = self._source.read(directory, self._at.get(directory), 100_000)
                assert not result.damages
                self.names += [name_of(frame) for frame in result.frames]
                if result.next == self._at.get(directory):
                    break
                self._at[directory] = result.next


def test_a_reader_follows_a_writer_of_another_process(tmp_path: Path) -> None:
    """Every frame that another process acknowledged is seen at once, over the ends of segments, and each once (I8)."""
    process = WriterProcess(tmp_path, "w")
    follower = Follower(tmp_path)
    try:
        while len(process.names) < 1_200:
            process.wait_for(100)
            follower.follow()
            assert set(process.names) <= set(follower.names)
    finally:
        process.kill()
    assert len(follower.names) == len(set(follower.names))
    assert len(list((tmp_path / "queue" / "1").glob("*.seg"))) > 1


def test_writers_that_are_killed_lose_nothing(tmp_path: Path) -> None:
    """Two writers at a time, killed at any moment and started again: what they acknowledged is read once (I2, I7)."""
    follower = Follower(tmp_path)
    acknowledged: list[str] = []
    for round_number in range(4):
        pair = [WriterProcess(tmp_path, f"{round_number}{which}") for which in "ab"]
        try:
            for process in pair:
                process.wait_for(50 + 37 * round_number)
            follower.follow()
        finally:
            for process in pair:
                process.kill()
                acknowledged += process.names
    assert sorted(path.name for path in (tmp_path / "queue").iterdir()) == ["1", "2"]
    follower.follow()
    assert set(acknowledged) <= set(follower.names)
    assert len(follower.names) == len(set(follower.names))
