"""The trials of a self-test: kills, and simulated power cuts, each on servers of its own in a directory."""

from __future__ import annotations

import contextlib
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from counterfoil.faultydisk.disk import DiskUnavailable
from counterfoil.selftest.faults import FAULTS
from counterfoil.selftest.game import Game
from counterfoil.selftest.judging import FAULT_NAMES, Judgement
from counterfoil.selftest.powerloss import mounted_disk, power_cut
from counterfoil.selftest.server import ServerFailed, ServerUnderTest

ROUNDS_A_SERVER = 12
"""After which a new one begins: a table that grows takes longer to look at."""
KILLS_ROWS_PER_SECOND = 1_000.0
CUTS_ROWS_PER_SECOND = 500.0

Tell = Callable[[str], None]


class Trial(msgspec.Struct):
    """What a trial came to."""

    rounds: int = 0
    actions: dict[str, int] = {}
    """What was done to the server, and how often."""
    sent: int = 0
    acknowledged: int = 0
    repeated: int = 0
    unsure: int = 0
    found: int = 0
    faults: dict[str, int] = msgspec.field(default_factory=lambda: dict.fromkeys(FAULT_NAMES, 0))
    failure: str | None = None
    """What the server did not do that it must; the trial ended there."""
    skipped: str | None = None
    """Why it can't be tried here."""

    @property
    def is_good(self) -> bool:
        """Whether nothing was found, as far as it was tried."""
        return self.failure is None and not any(self.faults.values())

    @property
    def action_count(self) -> int:
        return sum(self.actions.values())

    def add(self, game: Game, judgement: Judgement) -> None:
        """Take a reckoning of a server into account, its last."""
        self.rounds += game.rounds
        self.actions = dict(sorted((Counter(self.actions) + game.faults).items()))
        self.sent += judgement.sent
        self.acknowledged += judgement.acknowledged
        self.repeated += game.load.counts.repeated_rows + game.load.counts.doubled_rows
        self.unsure += judgement.unsure
        self.found += judgement.found
        for name, fault in judgement.faults.items():
            self.faults[name] += fault.count


Maker = Callable[[Path, int], AbstractContextManager[Game]]


def try_kills(directory: Path, seed: int, seconds: float, tell: Tell) -> Trial:
    """Kill and freeze processes of servers on the disk of `directory` for so long, and judge."""
    return _try(_killed, directory / "kills", seed, seconds, tell)


def try_power_cuts(directory: Path, seed: int, seconds: float, tell: Tell) -> Trial:
    """Cut the power of servers whose disk is simulated for so long, and judge; skipped where none can be."""
    try:
        return _try(_cut, directory / "cuts", seed, seconds, tell)
    except DiskUnavailable as error:
        return Trial(skipped=f"power cuts can't be simulated here, without FUSE and the right to mount: {error}")


@contextlib.contextmanager
def _killed(directory: Path, seed: int) -> Iterator[Game]:
    server = ServerUnderTest(directory)
    try:
        server.start()
        yield Game(server, seed=seed, faults=FAULTS, rows_per_second_max=KILLS_ROWS_PER_SECOND)
    finally:
        server.kill_all()


@contextlib.contextmanager
def _cut(directory: Path, seed: int) -> Iterator[Game]:
    with mounted_disk(directory, seed) as disk:
        server = ServerUnderTest(directory)
        try:
            server.start()
            yield Game(server, seed=seed, faults=[power_cut(disk)], rows_per_second_max=CUTS_ROWS_PER_SECOND)
        finally:
            server.kill_all(disk.unplug)


def _try(make: Maker, directory: Path, seed: int, seconds: float, tell: Tell) -> Trial:
    trial = Trial()
    deadline = time.monotonic() + seconds
    chance = random.Random(seed)  # noqa: S311
    while trial.is_good and (not trial.rounds or time.monotonic() < deadline):
        try:
            with make(directory, chance.getrandbits(32)) as game:
                # A first round in any case, however little time was given.
                game.play(1)
                game.play(ROUNDS_A_SERVER - 1, lambda: time.monotonic() < deadline)
                for judgement in game.reckon().values():
                    trial.add(game, judgement)
        except ServerFailed as failure:
            trial.failure = str(failure)
        tell(f"{trial.action_count:,} times; {trial.acknowledged:,} rows acknowledged, lost {trial.faults['lost']:,}")
        if trial.is_good:
            shutil.rmtree(directory)
    return trial
