"""A model test: random lives of a writer against a toy queue, which is a list.

The toy keeps, in order, the name of every frame that was appended and what the writer said of it: acknowledged (it must
be read, once), unsure (its flush failed or its process died: it may be read, once) or refused (it must never be read).
An unsure frame is as good as refused once its own life acknowledged another: a fresh segment was begun between them.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from counterfoil.errors import FlushFailed, QueueRefused
from counterfoil.positions import FramePosition
from counterfoil.queue.settings import QueueSettings
from counterfoil.queue.writer import SegmentWriter
from tests.faults.files import ANY, FaultyFiles
from tests.queue.drafts import draft, name_of
from tests.queue.lives import reader

SETTINGS = QueueSettings(reserve_bytes=0, segment_bytes=1024 * 1024)
ACKNOWLEDGED, UNSURE, REFUSED = "acknowledged", "unsure", "refused"


class QueueMachine(RuleBasedStateMachine):
    """Lives of one writer at a time, and a reader that lives on."""

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.loop = asyncio.new_event_loop()
        self.files = FaultyFiles()
        self.writer: SegmentWriter | None = None
        self.toy: list[tuple[str, str]] = []
        self.positions: dict[str, FramePosition] = {}
        self.reader = reader(self.root)
        self.at: FramePosition | None = None
        self.read_names: list[str] = []
        self.count = 0
        self.life_begins = 0

    @precondition(lambda self: self.writer is None)
    @rule()
    def open(self) -> None:
        """A new life; the disk works when it starts."""
        self.files.heal()
        quarantine = self.root / "quarantine"
        self.writer = SegmentWriter.open(self.root / "queue", self.files, SETTINGS, quarantine=quarantine)
        assert self.writer.number == 1
        self.life_begins = len(self.toy)

    @precondition(lambda self: self.writer is not None)
    @rule(row_counts=st.lists(st.integers(1, 3), min_size=1, max_size=4), row_bytes=st.sampled_from([0, 0, 0, 300_000]))
    def append(self, row_counts: list[int], row_bytes: int) -> None:
        """Frames of one request, awaited."""
        assert self.writer is not None
        names = [self.new_name() for _ in row_counts]
        drafts = [draft(name, count, row_bytes) for name, count in zip(names, row_counts, strict=True)]
        for name, answer in zip(names, self.loop.run_until_complete(self.answers(drafts)), strict=True):
            if isinstance(answer, FramePosition):
                self.positions[name] = answer
                self.forget_what_failed()
                self.toy.append((name, ACKNOWLEDGED))
            else:
                assert isinstance(answer, FlushFailed | QueueRefused)
                self.toy.append((name, UNSURE if isinstance(answer, FlushFailed) else REFUSED))

    @precondition(lambda self: self.writer is not None)
    @rule(
        operation=st.sampled_from(["append", "fdatasync", "create", "sync_dir"]),
        at=st.integers(1, 4),
        times=st.integers(1, 3),
    )
    def break_down(self, operation: str, at: int, times: int) -> None:
        """An operation of the disk will fail, some times."""
        self.files.break_down(operation, at, times)

    @rule()
    def heal(self) -> None:
        """The disk works again."""
        self.files.heal()

    @precondition(lambda self: self.writer is not None)
    @rule(frame_count=st.integers(0, 3), operations=st.integers(1, 6))
    def kill(self, frame_count: int, operations: int) -> None:
        """The process dies at its n-th operation from now on, with frames on the way that nobody waits for."""
        assert self.writer is not None
        writer, self.writer = self.writer, None
        names = [self.new_name() for _ in range(frame_count)]
        self.files.break_down(ANY, at=operations, times=None)

        async def die() -> None:
            for name in names:
                writer.append([draft(name)])
                await asyncio.sleep(0)
            await writer.close()

        self.loop.run_until_complete(die())
        self.toy += [(name, UNSURE) for name in names]

    @precondition(lambda self: self.writer is not None)
    @rule()
    def close(self) -> None:
        """The process stops as it should."""
        assert self.writer is not None
        writer, self.writer = self.writer, None
        self.loop.run_until_complete(writer.close())

    @rule(bytes_max=st.sampled_from([1, 1000, 1_000_000]))
    def read_on(self, bytes_max: int) -> None:
        """The reader goes on from where it was."""
        for directory in self.reader.directories():
            result = self.reader.read(directory, self.at, bytes_max)
            assert not result.damages
            assert not result.is_gone
            self.read_names += [name_of(frame) for frame in result.frames]
            self.at = result.next

    @precondition(lambda self: self.positions)
    @rule(data=st.data())
    def fetch(self, data: st.DataObject) -> None:
        """Any acknowledged frame stands where it was acknowledged."""
        name = data.draw(st.sampled_from(sorted(self.positions)))
        assert name_of(self.reader.fetch(self.positions[name])) == name

    @invariant()
    def all_that_was_acknowledged_is_read_once_and_in_order(self) -> None:
        """The toy and the real queue agree (I2, I8)."""
        names = self.read_from_the_beginning()
        order = {name: i for i, (name, _) in enumerate(self.toy)}
        states = dict(self.toy)
        assert [order[name] for name in names] == sorted({order[name] for name in names})
        assert {name for name, state in self.toy if state is ACKNOWLEDGED} <= set(names)
        assert all(states[name] is not REFUSED for name in names)
        assert names[: len(self.read_names)] == self.read_names

    def teardown(self) -> None:
        if self.writer is not None:
            self.close()
        self.loop.close()
        shutil.rmtree(self.root)

    def read_from_the_beginning(self) -> list[str]:
        source = reader(self.root, quarantining=False)
        names: list[str] = []
        for directory in source.directories():
            at = None
            while True:
                result = source.read(directory, at, 1_000_000)
                assert not result.damages
                names += [name_of(frame) for frame in result.frames]
                if result.next == at:
                    break
                at = result.next
        return names

    def forget_what_failed(self) -> None:
        for i in range(self.life_begins, len(self.toy)):
            name, state = self.toy[i]
            self.toy[i] = (name, REFUSED if state is UNSURE else state)

    def new_name(self) -> str:
        self.count += 1
        return f"frame-{self.count}"

    async def answers(self, drafts: list) -> list:  # type: ignore[type-arg]
        assert self.writer is not None
        return await asyncio.gather(*self.writer.append(drafts), return_exceptions=True)


TestQueueModel = QueueMachine.TestCase
TestQueueModel.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
