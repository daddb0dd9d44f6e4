"""Rounds of a cruel game: clients send, the power goes or the disk fails, and nothing may be missing.

`make powercut ARGS="--rounds 20"` cuts the power of the whole server, `make diskfaults` lets its disk fail, fill up and
be slow under it. Queue, ledger, table and everything else in its data directory lie on a disk of
`counterfoil.faultydisk`. After each round the checker says what became of every row, and the audit must balance.

A power cut: the disk stops at a moment, or at an operation, that chance names; everything is killed; what was not
flushed is gone in part or whole; often the power is cut again while the server comes up, or after an orderly stop.

A failing disk: for some seconds writes, flushes, new files, renames or anything fails, here and there or everywhere, or
there is no room, or flushes take seconds. The server is left alone. When the disk is well again it must take rows,
settle and deliver by itself.
"""

from __future__ import annotations

import argparse
import errno
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from deltalake.exceptions import DeltaError

from counterfoil.faultydisk.disk import DiskUnavailable, FaultyDisk
from counterfoil.faultydisk.faults import Fault, Operation
from counterfoil.selftest.content import Content
from counterfoil.selftest.journal import Journal
from counterfoil.selftest.judging import FAULT_NAMES, Judgement, judge
from counterfoil.selftest.load import Load
from counterfoil.selftest.reading import read_delta
from counterfoil.selftest.sending import HttpSender
from tests.e2e.server import TOKEN, Server, until
from tests.faultydisk import lives

MIB = 1024 * 1024
OPERATIONS_MAX = 1500
EPISODE_ROUNDS = 12
"""Rounds after which a new disk is begun: a table that grows takes longer to look at."""
PATIENCE_SECONDS = 300.0
"""How long a server may take to come up, to be well again, to deliver: long, because the machine may be busy."""

READ_TRIES = 5

ANY_OPERATION = frozenset(Operation)
PLACES = ("", "", "^data/queue|^queue", "ledger", "lake")
"""Where faults befall, as regular expressions; "" is everywhere."""


class Broken(Exception):
    """A promise is broken."""


class Totals(msgspec.Struct):
    """What rounds came to."""

    rounds: int = 0
    power_cuts: int = 0
    unflushed_files: int = 0
    forgotten_pages: int = 0
    forgotten_entries: int = 0
    disk_faults: Counter[str] = msgspec.field(default_factory=Counter)
    sent: int = 0
    acknowledged: int = 0
    unsure: int = 0
    repeated: int = 0
    found: int = 0
    audits: int = 0

    def lines(self) -> list[str]:
        """For people; whatever broke a promise ended the game before this."""
        befallen = ", ".join(f"{how} {count:,}" for how, count in sorted(self.disk_faults.items()))
        return [
            f"{self.rounds:,} rounds, {self.power_cuts:,} power cuts: {self.unflushed_files:,} files were not flushed,"
            f" {self.forgotten_pages:,} pages and {self.forgotten_entries:,} entries forgotten",
            f"faults of the disk: {befallen or 'none'}",
            f"{self.sent:,} rows sent, {self.acknowledged:,} acknowledged, {self.unsure:,} never answered,"
            f" {self.repeated:,} repeated; {self.found:,} rows in the table",
            f"{self.audits:,} audits balanced; {', '.join(f'{name} 0' for name in FAULT_NAMES)}",
        ]


class Game:
    """Rounds on one disk. A context manager: the server and the disk are gone after it."""

    def __init__(self, directory: Path, seed: int, totals: Totals) -> None:
        # Small segments and early merges, so that a few minutes pass what else takes days.
        queue = "segment_bytes = 1048576" + ("\nretention_days = 0" if seed % 2 else "")
        lake = "batch_seconds = 0.1\nmerge_commits = 5\nkeep_hours = 0.005"
        self.server = Server(directory, workers=2, queue=queue, destination=lake)
        self.server.patience_seconds = PATIENCE_SECONDS
        mount_point = directory / "data"
        mount_point.mkdir()
        self.disk = FaultyDisk(mount_point, seed)
        self._chance = random.Random(seed)
        self.totals = totals
        self._content = Content(f"canary{seed:x}x", time_base_ms=time.time_ns() // 1_000_000)
        self._journal = Journal()
        self._load = Load(
            self._content, self._journal, lambda: HttpSender(self.server.url, TOKEN), clients=3, seed=seed
        )

    def __enter__(self) -> Game:
        """Raises DiskUnavailable."""
        self.disk.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._load.stop()
        if self.server.process is not None:
            self.server.kill(self.disk.unplug)
        self._count_faults()
        self.disk.close()

    # Power cuts

    def cut_power(self) -> None:
        """One round of power cuts. Raises Broken."""
        self.send_into_a_cut()
        while self._chance.random() < 0.35:
            # Again while it is coming up, perhaps in the middle of mending what the cut before left.
            self.server.start(wait=False)
            self._cut_soon()
        self.start()
        self.check()
        self._end()
        if self._chance.random() < 0.3:
            self.disk.power_off()
            self._power_on()

    def send_into_a_cut(self) -> None:
        """Start, let clients send, and cut the power. Raises Broken."""
        if self.server.process is None:
            self.start()
        self._load.start()
        self._cut_soon()
        self._load.stop()

    def _cut_soon(self) -> None:
        """Cut the power at an operation or a moment, and have it on again; everything that ran is gone."""
        if self._chance.random() < 0.7:
            self.disk.power_off(after=self._chance.randrange(1, OPERATIONS_MAX))
        deadline = time.monotonic() + self._chance.uniform(0.05, 4.0)
        while not self.disk.state().is_off and time.monotonic() < deadline:
            time.sleep(0.02)
        self.disk.power_off()
        self.server.kill(self.disk.unplug)
        self._power_on()

    def _power_on(self) -> None:
        cut = self.disk.power_on(self._chance.randrange(1 << 30))
        self.totals.power_cuts += 1
        self.totals.unflushed_files += cut.unflushed_files
        self.totals.forgotten_pages += cut.pages
        self.totals.forgotten_entries += cut.entries

    # A failing disk

    def fail_disk(self) -> None:
        """One round of a disk that fails in some ways, of which chance names the kind. Raises Broken."""
        for _ in range(self._chance.randrange(1, 4)):
            self.fail_for(self._chance.uniform(1.0, 6.0), self._chance.choice(FAILURES))
        self.check()
        match self._chance.randrange(4):
            case 0:
                self._end()
            case 1:
                # What a failed flush has thrown away is gone only now.
                self.disk.power_off()
                self.server.kill(self.disk.unplug)
                self._power_on()
                self.start()
                self.check()

    def fail_for(self, seconds: float, failure: Callable[[Game], None]) -> None:
        """Let the disk fail for so long while clients send; the server is started before where it does not run."""
        if self.server.process is None:
            self.start()
        self._load.start()
        time.sleep(self._chance.uniform(0.1, 1.0))
        failure(self)
        time.sleep(seconds)
        self.disk.set_faults([])
        self.disk.set_room(None)
        self._load.stop()

    def fill_up(self) -> None:
        """The disk has little room left, or none."""
        self.disk.set_room(self._chance.choice((0, 4096, 65_536, self._chance.randrange(MIB))), more=True)

    def fail_writes(self) -> None:
        """Writes fail with EIO or ENOSPC."""
        self._fail(frozenset([Operation.WRITE, Operation.TRUNCATE]), errno.EIO, errno.ENOSPC)

    def fail_flushes(self) -> None:
        """Flushes of files fail, and throw away what they were to flush."""
        self._fail(frozenset([Operation.FLUSH]), errno.EIO)

    def fail_anything(self) -> None:
        """Every operation that changes or flushes something fails."""
        self._fail(ANY_OPERATION, errno.EIO)

    def fail_entries(self) -> None:
        """Nothing can be made, renamed or removed, or directories can't be flushed."""
        entries = [Operation.CREATE, Operation.RENAME, Operation.REMOVE, Operation.FLUSH_DIRECTORY]
        self._fail(frozenset(self._chance.sample(entries, self._chance.randrange(1, 5))), errno.EIO, errno.ENOSPC)

    def be_slow(self) -> None:
        """Flushes take seconds."""
        slow = frozenset([Operation.FLUSH, Operation.FLUSH_DIRECTORY])
        self.disk.set_faults([Fault(slow, delay_seconds=self._chance.uniform(0.5, 3.0), share=0.7)])

    def _fail(self, operations: frozenset[Operation], *numbers: int) -> None:
        share = self._chance.choice((1.0, 0.5, 0.1, 0.02))
        fault = Fault(operations, errno=self._chance.choice(numbers), share=share, path=self._chance.choice(PLACES))
        self.disk.set_faults([fault])

    def _count_faults(self) -> None:
        self.totals.disk_faults.update(self.disk.state().befallen)

    # What must be so

    def start(self) -> None:
        """Start the server and return when it is ready. Raises Broken."""
        try:
            self.server.start(wait=False)
            self._await(lambda: self.server.console("/readyz") == 200, "ready")
        except AssertionError as failure:
            raise Broken(f"the server did not come up: {failure}") from failure

    def _end(self) -> None:
        status = self.server.stop()
        if status:
            raise Broken(f"the server ended with {status}")

    def check(self) -> None:
        """Repeat what has no answer, let everything be delivered, and have the checker and the audit judge."""
        # First of all it must have come back by itself.
        self._await(lambda: self.server.console("/readyz") == 200, "ready again")
        left = self._load.finish(PATIENCE_SECONDS)
        if left:
            raise Broken(f"{left} rows could not be sent in {PATIENCE_SECONDS} s: {self._tail()}")
        self._await(self._is_delivered, "everything is settled and delivered")
        judgement = self._judged()
        if not judgement.is_clean:
            raise Broken("\n".join(judgement.lines()))
        books = json.loads(self.server.run("audit", "--json"))
        if not books["is_balanced"] or books["damaged_frames"]:
            raise Broken(f"the audit: {books}")
        self._judgement = judgement
        self.totals.rounds += 1
        self.totals.audits += 1

    def _judged(self) -> Judgement:
        """What the checker says; asked again when the table was cleaned up under its hands, which keeps little here."""
        for left in range(READ_TRIES - 1, -1, -1):
            try:
                return judge(self._content, self._journal, read_delta(self.server.lake))
            except (DeltaError, FileNotFoundError):
                if not left:
                    raise
        raise AssertionError

    def add_up(self) -> None:
        """Add to the totals what the checker found last; once a game."""
        self.totals.sent += self._judgement.sent
        self.totals.acknowledged += self._judgement.acknowledged
        self.totals.unsure += self._judgement.unsure
        self.totals.found += self._judgement.found
        self.totals.repeated += self._load.counts.repeated_rows

    def _is_delivered(self) -> bool:
        try:
            status: dict[str, Any] = self.server.status()
        except OSError:
            return False
        self._status = status
        return all(writer["settled"] == writer["written"] for writer in status["writers"]) and all(
            destination["pending"] == 0 for destination in status["destinations"]
        )

    def _await(self, is_so: Callable[[], bool], what: str) -> None:
        def look() -> bool | None:
            assert self.server.process is not None
            ended = self.server.process.poll()
            if ended is not None:
                raise Broken(f"the server ended with {ended}: {self._tail()}")
            return is_so() or None

        try:
            until(look, what, PATIENCE_SECONDS)
        except AssertionError as failure:
            raise Broken(f"{failure}: {self._tail()}") from failure

    def _tail(self) -> str:
        return self.server.log_path.read_text()[-4000:]


FAILURES = (Game.fill_up, Game.fail_writes, Game.fail_flushes, Game.fail_anything, Game.fail_entries, Game.be_slow)


def play_episode(
    directory: Path, seed: int, totals: Totals, rounds: int, *, with_faults: bool, deadline: float | None = None
) -> None:
    """Rounds on a new disk, of which none but the first begins after the deadline. Raises Broken, DiskUnavailable."""
    with Game(directory, seed, totals) as game:
        for number in range(1, rounds + 1):
            if number > 1 and deadline is not None and time.monotonic() >= deadline:
                break
            began = time.monotonic()
            if with_faults:
                game.fail_disk()
            else:
                game.cut_power()
            _tell(f"seed {seed}, round {number}: nothing lost, {time.monotonic() - began:.0f} s")
        game.add_up()


def main() -> None:
    """Play, and tell what it came to; ends with 1 when a promise is broken, with 3 where there is no such disk."""
    parser = argparse.ArgumentParser(description="Cut the power, or let the disk fail; nothing may be missing.")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--minutes", type=float, help="as many rounds as begin in this time")
    parser.add_argument("--faults", action="store_true", help="let the disk fail instead of cutting the power")
    parser.add_argument(
        "--lives", type=int, default=0, help="first so many power cuts of queue, ledger and table alone"
    )
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # So that no server and no mount is left behind.
    try:
        if asked.lives:
            # First, while this process has no threads: lives are forked.
            _tell(f"without HTTP: {lives.play(asked.lives, asked.seed, tell=_tell)}")
        _play(asked)
    except (Broken, lives.Broken) as broken:
        _tell(f"BROKEN: {broken}")
        sys.exit(1)
    except DiskUnavailable as problem:
        _tell(f"needs FUSE and the right to mount: {problem}")
        sys.exit(3)


def _play(asked: argparse.Namespace) -> None:
    deadline = None if asked.minutes is None else time.monotonic() + 60 * asked.minutes
    totals, seed = Totals(), asked.seed
    while totals.rounds < asked.rounds if deadline is None else time.monotonic() < deadline:
        rounds = EPISODE_ROUNDS if deadline is not None else min(EPISODE_ROUNDS, asked.rounds - totals.rounds)
        directory = Path(tempfile.mkdtemp(prefix="counterfoil-powercut-"))
        _tell(f"seed {seed}, in {directory}, whose log stays when a promise is broken")
        play_episode(directory, seed, totals, rounds, with_faults=asked.faults, deadline=deadline)
        shutil.rmtree(directory)
        seed += 1
        for line in totals.lines():
            _tell(line)


def _tell(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
