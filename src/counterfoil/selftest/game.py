"""Rounds of a cruel game on one server: clients send all the while, each round brings faults at random times.

Every round goes on in the directory that the rounds before left. At a reckoning the clients stop, what has no answer is
repeated until it has one, everything is delivered, the books are audited, and the judge reads every destination.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from counterfoil.selftest.canaries import leaks
from counterfoil.selftest.content import Content
from counterfoil.selftest.faults import FAULTS, Fault
from counterfoil.selftest.journal import Journal
from counterfoil.selftest.judging import FoundRow, Judgement, judge
from counterfoil.selftest.load import Load
from counterfoil.selftest.reading import read_delta
from counterfoil.selftest.sending import HttpSender, Sender
from counterfoil.selftest.server import ServerFailed, ServerUnderTest

FAULTS_A_ROUND_MAX = 3
PAUSE_SECONDS_MAX = 1.2
FINISH_SECONDS = 600.0

Reader = Callable[[], Iterable[FoundRow]]


class Game:
    """A server, its clients, and what is done to them; one run, with a name of its own."""

    def __init__(
        self,
        server: ServerUnderTest,
        *,
        seed: int,
        faults: Sequence[Fault] = FAULTS,
        readers: Mapping[str, Reader] | None = None,
        open_sender: Callable[[], Sender] | None = None,
        clients: int = 3,
        batch_rows_max: int = 60,
        rows_per_second_max: float | None = None,
    ) -> None:
        """`readers`: by destination, how its rows are read; the default is the server's own table alone."""
        self.server = server
        self.rounds = 0
        self.faults: Counter[str] = Counter()
        self.content = Content(f"canary{random.Random(seed).getrandbits(48):012x}", time.time_ns() // 1_000_000)  # noqa: S311
        self.journal = Journal()
        self.load = Load(
            self.content,
            self.journal,
            open_sender or (lambda: HttpSender(server.url, server.token)),
            clients=clients,
            batch_rows_max=batch_rows_max,
            rows_per_second_max=rows_per_second_max,
            seed=seed,
        )
        self._readers = readers or {"lake": lambda: read_delta(server.lake)}
        self._chance = random.Random(seed)  # noqa: S311
        self._kinds = tuple(faults)
        self._waiting: list[Fault] = []

    def play(self, rounds: int, go_on: Callable[[], bool] = lambda: True) -> None:
        """Play so many rounds, or fewer when `go_on` says no; the clients send from the first to the last.

        Raises ServerFailed when the server does not come up again by itself.
        """
        self.load.start()
        try:
            for _ in range(rounds):
                if not go_on():
                    break
                self._play_round()
        finally:
            self.load.stop()

    def _play_round(self) -> None:
        for _ in range(self._chance.randint(1, FAULTS_A_ROUND_MAX)):
            # How far a batch, a settled group or a delivery has come is left to chance.
            time.sleep(self._chance.uniform(0.02, PAUSE_SECONDS_MAX))
            fault = self._next_fault()
            fault(self.server, self._chance)
            self.faults[fault.__name__] += 1
        self.server.await_ready()
        self.rounds += 1

    def _next_fault(self) -> Fault:
        """Each kind once before any comes again, in an order by chance."""
        if not self._waiting:
            self._waiting = list(self._kinds)
            self._chance.shuffle(self._waiting)
        return self._waiting.pop()

    def reckon(self) -> dict[str, Judgement]:
        """What became of every row so far, by destination.

        Raises ServerFailed when the server does not take, deliver or balance what it must, or tells a row's value.
        """
        left = self.load.finish(FINISH_SECONDS)
        if left:
            raise ServerFailed(f"{left:,} rows got no answer within {FINISH_SECONDS:.0f} s from a server that is ready")
        self.server.await_delivery()
        self.server.audit()
        self._look_for_leaks()
        return {name: judge(self.content, self.journal, read()) for name, read in self._readers.items()}

    def _look_for_leaks(self) -> None:
        metrics = self.server.directory / "metrics.txt"
        metrics.write_text(self.server.metrics())
        told = leaks(self._told_files(metrics), [self.content.run, self.server.token])
        if told:
            raise ServerFailed(f"a value of a row or the token stands in {', '.join(path.name for path in told)}")

    def _told_files(self, metrics: Path) -> list[Path]:
        """Everything that the server has told: its log, its metrics, and the notes beside what it set aside."""
        notes = (self.server.directory / "data" / "quarantine").glob("*.json")
        return [self.server.log, metrics, *notes]
