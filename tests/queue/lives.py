"""The lives of a writer without its thread: what they wrote, and what a reader makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from counterfoil.files import Files, RealFiles
from counterfoil.positions import DirectoryId, FramePosition, SegmentNumber
from counterfoil.queue import Damage
from counterfoil.queue.directory import take_directory
from counterfoil.queue.quarantine import Quarantine
from counterfoil.queue.reader import QueueReader
from counterfoil.queue.recovery import close_leftovers
from counterfoil.queue.segment import segment_name
from counterfoil.queue.tail import SegmentTail
from tests.queue.drafts import draft, name_of

NOW_MS = 1_700_000_000_000


class Life:
    """One life of the writer of `root`/queue/1, from its opening on."""

    def __init__(self, root: Path, files: Files) -> None:
        self.root = root
        self.directory = take_directory(root / "queue", files)
        try:
            self.left = close_leftovers(self.directory, files, Quarantine(root / "quarantine", files, lambda: NOW_MS))
        except BaseException:
            self.directory.release()
            raise
        self.tail = SegmentTail(self.directory, files, self.left, lambda: NOW_MS)
        self.tail.begin()

    def write(self, *names: str) -> list[FramePosition]:
        """Frames of these names, with one flush."""
        return self.tail.write([draft(name) for name in names])

    def roll(self) -> None:
        """Begin the next segment."""
        self.tail.begin()

    def end(self) -> None:
        """As a process ends, killed or not: descriptors go, and with them the lock."""
        self.tail._give_up()
        self.directory.release()


@contextmanager
def life(root: Path, files: Files | None = None) -> Iterator[Life]:
    """A life that ends however the test goes."""
    one = Life(root, RealFiles() if files is None else files)
    try:
        yield one
    finally:
        one.end()


def segment_path(root: Path, number: int) -> Path:
    return root / "queue" / "1" / segment_name(SegmentNumber(number))


def flip(path: Path, offset: int, mask: int = 0xFF) -> None:
    """Change bits of one byte of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= mask
    overwrite(path, bytes(data))


def overwrite(path: Path, data: bytes) -> None:
    """Other bytes in the same file: who has it open sees them too."""
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()


class Found:
    """What a reader found: names of frames, in order, and damages."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.damages: list[Damage] = []


def reader(root: Path, *, quarantining: bool = True) -> QueueReader:
    quarantine = root / "quarantine" if quarantining else None
    return QueueReader(root / "queue", RealFiles(), quarantine, clock_ms=lambda: NOW_MS)


def the_directory(source: QueueReader) -> DirectoryId:
    (directory,) = source.directories()
    return directory


def read_all(root: Path, start: FramePosition | None = None, *, quarantining: bool = True) -> Found:
    """Everything of the one directory from `start` on, in small steps."""
    source = reader(root, quarantining=quarantining)
    directory = the_directory(source)
    found = Found()
    at = start
    while True:
        result = source.read(directory, at, 300)
        assert not result.is_gone
        found.names += [name_of(frame) for frame in result.frames]
        found.damages += result.damages
        if result.next == at:
            return found
        at = result.next


def quarantined(root: Path) -> dict[str, bytes]:
    """The files of the quarantine."""
    folder = root / "quarantine"
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}
