"""Lives of queue, ledger and Delta table together, without HTTP, that end in a power cut each; many in a second.

A life is a forked process in which the real writer, settle, deliver and the real table run as in the server, on a
faulty disk. It appends rows without end and tells through a pipe which of them are acknowledged. The power goes at an
operation that chance names: while rows are written, while a segment begins, in RocksDB's flushes and compactions, in a
commit, in a merge, and while an earlier power cut is mended. In every other life the disk fails before that, at some
operations in a row: what can't go on then ends, as a process of the server does. Every few lives one that goes on to
the end says what lies in the table.

Forked, because what costs time in a start is loading the libraries. So nothing of them may have started a thread in
the process that forks.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import json
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, cast

import msgspec
import pyarrow as pa
import xxhash
from deltalake import DeltaTable

from counterfoil.contract.facts import key_hash, key_prefix
from counterfoil.datadir import DataDir
from counterfoil.destinations.delta import DeltaDestination
from counterfoil.destinations.delta_address import TableAddress
from counterfoil.destinations.settings import DeltaSettings
from counterfoil.errors import FlushFailed, QueueRefused
from counterfoil.faultydisk.disk import DiskUnavailable, FaultyDisk
from counterfoil.faultydisk.faults import Fault, Operation
from counterfoil.faultydisk.tree import CutReport
from counterfoil.files import Files, RealFiles
from counterfoil.ledger import Ledger
from counterfoil.ledger.settings import LedgerSettings
from counterfoil.pipeline.audit import audit
from counterfoil.pipeline.deliver import Deliverer
from counterfoil.pipeline.process import Pipeline
from counterfoil.pipeline.retention import Retention
from counterfoil.pipeline.settings import PipelineSettings
from counterfoil.pipeline.settle import Settler
from counterfoil.queue.frame import FrameDraft, Origin, draft_frame
from counterfoil.queue.reader import QueueReader
from counterfoil.queue.recovery import recover_idle
from counterfoil.queue.settings import QueueSettings
from counterfoil.queue.writer import SegmentWriter
from counterfoil.telemetry.logs import configure_logs
from tests.e2e.server import until

MIB = 1024 * 1024
SENDERS = 3
ROWS_MAX = 40
ROW_BYTES = 700
OPERATIONS_MAX = (60, 250, 900)
CUTS_MAX = 4
"""Power cuts in a row before it is looked at what lies in the table."""
EPISODE_CUTS = 20
"""Power cuts after which a new disk is begun: a table that grows takes longer to look at."""
FAULTS_SECONDS = 2.0
WAIT_SECONDS = 120.0


class Verdict(msgspec.Struct, frozen=True):
    """What lies in the table at the end of a life that went on to its end."""

    rows: int
    missing: list[str]
    twice: list[str]
    unknown: list[str]
    changed: list[str]
    differences: list[str]
    """What the audit found."""

    @property
    def is_clean(self) -> bool:
        return not (self.missing or self.twice or self.unknown or self.changed or self.differences)


class Tally(msgspec.Struct):
    """What lives came to."""

    lives: int = 0
    kills: int = 0
    """Lives that were killed, and no power cut."""
    verdicts: int = 0
    acknowledged: int = 0
    rows: int = 0
    operations: int = 0
    unflushed_files: int = 0
    forgotten_pages: int = 0
    forgotten_entries: int = 0
    befallen: dict[str, int] = {}
    """Faults of the disk."""

    def add(self, other: Tally) -> None:
        """Count another's, too."""
        for name in Tally.__struct_fields__:
            if name != "befallen":
                setattr(self, name, getattr(self, name) + getattr(other, name))
        self.befallen = dict(Counter(self.befallen) + Counter(other.befallen))


class Broken(Exception):
    """A promise is broken."""


class Lives:
    """Lives on one disk, one after the other."""

    def __init__(self, disk: FaultyDisk, seed: int, log: Path, files: Files | None = None) -> None:
        """`files` are the queue's; others than the real ones only to see that what they break is found out."""
        self.tally = Tally()
        self._disk = disk
        self._files = files or RealFiles()
        self._chance = Random(seed)
        self._log = log
        self._sent: set[str] = set()
        """Frames that were begun to be sent: their rows may be in the table."""
        self._acknowledged: set[str] = set()

    def play(self) -> Verdict:
        """Some lives that end in a power cut, then one that goes on to its end, and what it found."""
        for _ in range(self._chance.randrange(1, CUTS_MAX + 1)):
            self._cut_short(self._chance.randrange(1, self._chance.choice(OPERATIONS_MAX)))
        return self._judged()

    def _cut_short(self, operations: int) -> None:
        faults = self._some_faults(operations) if self._chance.random() < 0.5 else []
        self._disk.set_faults(faults)
        self._disk.power_off(after=operations)
        self.tally.lives += 1
        name = f"life{self.tally.lives}"
        # One step of the chance a life, however far it came.
        seed = self._chance.randrange(1 << 30)
        child = _Child(lambda told: send_on(Stack(self._data, self._files), told, name, seed), self._log)
        heal_at = time.monotonic() + FAULTS_SECONDS

        def is_over() -> bool:
            if time.monotonic() > heal_at:
                self._disk.set_faults([])  # Who waits longer and longer for a disk meets the last of forty faults late.
            return self._disk.state().is_off or child.ended()

        try:
            until(lambda: is_over() or None, "the power is off", WAIT_SECONDS)
            has_ended = child.ended()
        finally:
            child.kill()
            self._disk.unplug()
            said = child.said()
        befallen = self._disk.state().befallen
        if has_ended and befallen == self.tally.befallen:
            raise Broken(f"a life ended before the power was cut: {self._log.read_text()[-3000:]}")
        self._sent |= {word[1:] for word in said if word[0] == "?"}
        acknowledged = {word[1:] for word in said if word[0] == "!"}
        self._acknowledged |= acknowledged
        self._disk.set_faults([])
        tally = self.tally
        if self._chance.random() < 0.4:
            # Killed, and the power goes some lives later: what this life did not flush nobody may take for flushed.
            self._disk.resume()
            tally.kills += 1
            cut = CutReport(seed, 0, 0, 0, 0)
        else:
            cut = self._disk.power_on(seed)
        tally.acknowledged += len(acknowledged)
        tally.operations += operations
        tally.unflushed_files += cut.unflushed_files
        tally.forgotten_pages += cut.pages
        tally.forgotten_entries += cut.entries
        tally.befallen = befallen

    def _some_faults(self, operations: int) -> list[Fault]:
        """Some operations in a row fail, of one kind or any, soon or late."""
        chance = self._chance
        one = chance.choice([*Operation, Operation.FLUSH, Operation.FLUSH])
        kinds = chance.choice((frozenset(Operation), frozenset([one])))
        after, times = chance.randrange(operations) // chance.choice((1, 8)), chance.choice((1, 1, 2, 5, 40))
        path = chance.choice(("", "", "queue/", "ledger/", "lake/"))
        return [Fault(kinds, errno=chance.choice((errno.EIO, errno.ENOSPC)), after=after, times=times, path=path)]

    def _judged(self) -> Verdict:
        child = _Child(
            lambda told: told(json.dumps(judge(Stack(self._data, self._files), self._sent, self._acknowledged))),
            self._log,
        )
        words = child.said()
        if not words:
            raise Broken(f"the life that was to go on to its end did not: {self._log.read_text()[-3000:]}")
        verdict = msgspec.json.decode(words[-1], type=Verdict)
        self.tally.verdicts += 1
        self.tally.rows = verdict.rows
        return verdict

    @property
    def _data(self) -> Path:
        return self._disk.mount_point / "data"


Tell = Callable[[str], None]


class _Child:
    """A forked process that says lines until it ends."""

    def __init__(self, work: Callable[[Tell], None], log: Path) -> None:
        read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(read)
            _work(work, write, log)
        os.close(write)
        self._read = read
        self._has_ended = False
        self._data = b""

    def ended(self) -> bool:
        """Whether it ended by itself."""
        if not self._has_ended:
            self._drain(wait=False)
            self._has_ended = os.waitpid(self.pid, os.WNOHANG)[0] != 0
        return self._has_ended

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            if not self._has_ended:
                os.kill(self.pid, signal.SIGKILL)

    def said(self) -> list[str]:
        """Every whole line that it said, once it has ended."""
        self._drain(wait=True)
        os.close(self._read)
        if not self._has_ended:
            os.waitpid(self.pid, 0)
            self._has_ended = True
        return [line.decode() for line in self._data.split(b"\n")[:-1]]

    def _drain(self, *, wait: bool) -> None:
        os.set_blocking(self._read, wait)
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._read, 1 << 16):
                self._data += data


def _work(work: Callable[[Tell], None], write: int, log: Path) -> None:
    """What a forked process does; it never comes back."""
    status = 1
    try:
        stream = log.open("a")
        configure_logs("life", stream=stream)
        try:
            work(lambda word: _say(write, word))
            status = 0
        except BaseException:
            traceback.print_exc(file=stream)
            stream.flush()
    finally:
        os._exit(status)


def _say(write: int, word: str) -> None:
    data = word.encode() + b"\n"
    while data:
        data = data[os.write(write, data) :]


class LyingFiles(RealFiles):
    """Files that say that bytes are on disk before they are."""

    def fdatasync(self, descriptor: int) -> None:
        pass


# In the forked process.


class _QuickRetention(Retention):
    """Retention that looks all the time whether something may go."""

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self.step()
            stop.wait(0.05)


class Stack:
    """Queue, ledger, settle, deliver and table, as the server builds them; small, so that much happens soon."""

    def __init__(self, data: Path, files: Files) -> None:
        self.lake = data / "lake"
        data_dir = DataDir(data)
        self.ledger_id = data_dir.make()
        assert self.ledger_id is not None
        recover_idle(data_dir.queue, files, data_dir.quarantine)
        self.writer = SegmentWriter.open(
            data_dir.queue,
            files,
            QueueSettings(segment_bytes=MIB, reserve_bytes=0),
            quarantine=data_dir.quarantine,
        )
        self.ledger = Ledger.open(
            data_dir.ledger,
            LedgerSettings(write_buffer_bytes=4 * MIB, cache_bytes=8 * MIB),
            self.ledger_id,
        )
        self.queue = QueueReader(data_dir.queue, files, data_dir.quarantine)
        settings = DeltaSettings(name="lake", batch_seconds=0.02, merge_commits=4, keep_hours=0)
        self.ledger.register_destination("lake")
        self.destination = DeltaDestination(
            settings,
            address=TableAddress(data_dir.lake, ""),
            ledger_id=self.ledger_id,
            files=RealFiles(),
            quarantine=data_dir.quarantine,
            clock_ms=_clock_ms,
        )
        settler = Settler(self.queue, self.ledger, PipelineSettings(group_rows=200), _clock_ms)
        deliverer = Deliverer(self.destination, self.ledger, self.queue, settings, clock_ms=_clock_ms)
        retention = _QuickRetention(self.ledger, self.queue, ["lake"], retention_days=0)
        self.pipeline = Pipeline(settler.step, [deliverer, retention], poll_seconds=0.01)
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.pipeline.run()
        except BaseException as failure:
            self.failure = failure
            raise

    def is_through(self) -> bool:
        """Whether all that is durable is settled and delivered."""
        if self.failure is not None:
            raise self.failure
        reached = self.ledger.reading_positions()
        return (
            all(reached.get(one) == self.queue.durable_end(one) for one in self.queue.directories())
            and self.ledger.cursor("lake") == self.ledger.last_group()
        )

    def stop(self) -> None:
        self.pipeline.stop()
        self._thread.join()


def send_on(stack: Stack, told: Tell, name: str, seed: int) -> None:
    """Append frames without end, some of them again, answered or not, and tell which are acknowledged."""

    async def send(sender: int) -> None:
        chance = Random(f"{seed} {sender}")
        kept: list[str] = []
        for number in range(sys.maxsize):
            if stack.failure is not None:
                raise stack.failure
            frame = chance.choice(kept) if kept and chance.random() < 0.15 else f"{name}-{sender}-{number}"
            told(f"?{frame}")
            [future] = stack.writer.append([frame_of(frame)])
            kept.append(frame)
            try:
                await future
            except (FlushFailed, QueueRefused):
                await asyncio.sleep(0.02)
            else:
                told(f"!{frame}")
                await asyncio.sleep(0.001)

    async def send_all() -> None:
        await asyncio.gather(*(send(sender) for sender in range(SENDERS)))

    asyncio.run(send_all())


def frame_of(name: str) -> FrameDraft:
    """The frame of a name; how many rows it has, and what they hold, follows from that."""
    names = [f"{name}.{index}" for index in range(rows_of(name))]
    rows = [
        msgspec.json.encode({"event": name, "distinctId": each, "eventProperties": properties_of(each)})
        for each in names
    ]
    return draft_frame(
        origin=msgspec.json.encode(Origin(source="website")),
        rows=rows,
        key_hashes=[key_hash(key_prefix("website"), each) for each in names],
        content_hashes=[xxhash.xxh3_64_digest(row) for row in rows],
        received_at_ms=_clock_ms(),
        request_id=bytes(16),
    )


def properties_of(distinct_id: str) -> dict[str, str]:
    return {"fill": distinct_id * (ROW_BYTES // len(distinct_id))}


def rows_of(name: str) -> int:
    return 1 + sum(name.encode()) % ROWS_MAX


def judge(stack: Stack, sent: set[str], acknowledged: set[str]) -> dict[str, Any]:
    """Let it settle and deliver what is there, and say what lies in the table."""
    until(lambda: stack.is_through() or None, "all is settled and delivered", WAIT_SECONDS)
    stack.stop()
    asyncio.run(stack.writer.close())
    found = audit(stack.ledger, stack.queue, {"lake": stack.destination.held})
    table = pa.table(DeltaTable(stack.lake).to_pyarrow_table())
    names, events, properties = (
        cast("list[str]", table[column].to_pylist()) for column in ("distinct_id", "event", "event_properties")
    )
    rows = list(zip(names, events, properties, strict=True))
    counts = Counter(names)
    may = {f"{frame}.{index}" for frame in sent for index in range(rows_of(frame))}
    must = {f"{frame}.{index}" for frame in acknowledged for index in range(rows_of(frame))}
    verdict = Verdict(
        rows=len(rows),
        missing=sorted(must - counts.keys())[:10],
        twice=sorted(name for name, count in counts.items() if count > 1)[:10],
        unknown=sorted(counts.keys() - may)[:10],
        changed=sorted(row[0] for row in rows if not is_as_sent(*row))[:10],
        differences=[] if found.is_balanced else [str(each) for each in found.differences[:10]] or [str(found)[:1000]],
    )
    stack.ledger.close()
    return dict(msgspec.to_builtins(verdict))


def is_as_sent(distinct_id: str, event: str, properties: str) -> bool:
    return event == distinct_id.partition(".")[0] and json.loads(properties) == properties_of(distinct_id)


def _clock_ms() -> int:
    return time.time_ns() // 1_000_000


def play(cuts: int, seed: int, *, files: Files | None = None, tell: Callable[[str], None] = lambda _: None) -> Tally:
    """At least so many power cuts, on a new disk every EPISODE_CUTS. Raises Broken, DiskUnavailable."""
    whole = Tally()
    while whole.lives < cuts:
        with tempfile.TemporaryDirectory(prefix="counterfoil-lives-") as name:
            root = Path(name)
            (root / "disk").mkdir()
            with FaultyDisk(root / "disk", seed) as disk:
                lives = Lives(disk, seed, root / "log", files)
                while lives.tally.lives < min(EPISODE_CUTS, cuts - whole.lives):
                    verdict = lives.play()
                    if not verdict.is_clean:
                        raise Broken(f"seed {seed}, after {lives.tally.lives} power cuts: {verdict}")
        whole.add(lives.tally)
        tell(f"seed {seed}: {lives.tally}")
        seed += 1
    return whole


def main() -> None:
    """Play, tell, and end with 1 when a promise is broken, with 3 where there is no such disk."""
    parser = argparse.ArgumentParser(description="Power cuts of queue, ledger and table; nothing may be missing.")
    parser.add_argument("--cuts", type=int, default=100)
    parser.add_argument("--seed", type=int, default=Random().randrange(1_000_000))
    parser.add_argument("--lie", action="store_true", help="acknowledge what is not flushed: it must be found out")
    asked = parser.parse_args()
    try:
        tally = play(asked.cuts, asked.seed, files=LyingFiles() if asked.lie else None, tell=_tell)
    except Broken as broken:
        _tell(str(broken))
        sys.exit(1)
    except DiskUnavailable as problem:
        _tell(str(problem))
        sys.exit(3)
    _tell(f"in all: {tally}")


def _tell(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
