"""The long campaign: processes and destinations are killed and frozen while clients send; nothing may be missing.

`make crash ARGS="--minutes 60"` plays it. A server with a Delta table, a PostgreSQL where there is one, and a receiver
of webhooks takes rows by raw HTTP and by the official SDK; in each round a gateway worker, the pipeline, the console,
the supervisor, all at once, or a destination is killed or frozen at random times. Persons of whom the checker knows
nothing are sent beside that, and erased while all of it goes on: a row of theirs that is found counts as never sent.
Every few rounds the books are audited and the checker (`counterfoil.selftest`) judges every row at every destination;
after a few reckonings a new server begins in a new directory; every third has no receiver, and loses its ledger, which
is rebuilt. It ends with a report of all that was done, and exit status 1 when a row was lost, doubled or changed, or
the server did not come up by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import stamina.instrumentation

from counterfoil.selftest.faults import FAULTS, Fault, kill_pipeline, lose_ledger
from counterfoil.selftest.game import Game, Reader
from counterfoil.selftest.judging import FAULT_NAMES, FoundRow, Judgement
from counterfoil.selftest.reading import read_delta, read_postgres, read_postings
from counterfoil.selftest.sending import HttpSender, Sender
from counterfoil.selftest.server import ServerFailed, ServerUnderTest
from tests.e2e.posting_receiver import PostingReceiver
from tests.postgres_server import PostgresServer, postgres_server, why_not
from tests.selftest.sdk_sender import SdkSender

ROUNDS_A_RECKONING = 8
RECKONINGS_A_SERVER = 4
DOWN_SECONDS_MAX = 2.5
CLIENT_TIMEOUT_SECONDS = 10.0
PERSON = "person-"
PATIENCE_SECONDS = 900.0
"""What a server may take to be ready: on a machine that is busy with other things, starting takes minutes."""

# Small segments and early merges, so that a few minutes pass what else takes days; every other server keeps no segment
# longer than destinations need it.
QUEUES = ("segment_bytes = 1048576", "segment_bytes = 1048576\nretention_days = 0")
LAKE = "merge_commits = 5\nkeep_hours = 0.005"


@contextlib.contextmanager
def a_game(
    directory: Path, seed: int, *, with_postgres: bool = True, rows_per_second: float | None = None
) -> Iterator[tuple[Game, Persons]]:
    """A game with every kind of destination, its server started; all of it ended at the end."""
    with contextlib.ExitStack() as stack:
        directory.mkdir(parents=True, exist_ok=True)
        faults: list[Fault] = [*FAULTS]
        more: list[str] = []
        readers: dict[str, Reader] = {}
        if seed % 3 == 2:
            # A receiver can't be asked what it has, so a ledger is lost only where there is none.
            faults.append(lose_ledger)
        else:
            receiver = PostingReceiver(directory)
            stack.callback(receiver.kill)
            receiver.start()
            faults.append(killed_receiver(receiver))
            more.append(receiver.toml)
            readers["hook"] = lambda: rows_of_others(receiver)
        if with_postgres:
            postgres = stack.enter_context(postgres_server())
            faults.append(killed_postgres(postgres))
            more.append(
                f'[[destinations]]\nname = "pg"\ntype = "postgres"\ndsn = "{postgres.dsn()}"\nbatch_seconds = 0.1'
            )
            readers["pg"] = lambda: read_postgres(postgres.dsn())
        server = ServerUnderTest(
            directory / "server",
            queue=QUEUES[seed % 2],
            lake=LAKE,
            more="\n".join(more),
            patience_seconds=PATIENCE_SECONDS,
        )
        readers["lake"] = lambda: read_delta(server.lake)
        persons = Persons()
        faults.append(persons.erase_person)
        turns = itertools.count()

        def open_sender() -> Sender:
            kind = HttpSender if next(turns) % 2 else SdkSender
            return kind(server.url, server.token, CLIENT_TIMEOUT_SECONDS)

        stack.callback(server.kill_all)
        server.start()
        game = Game(
            server,
            seed=seed,
            faults=faults,
            readers=readers,
            open_sender=open_sender,
            rows_per_second_max=rows_per_second,
        )
        yield game, persons


def killed_receiver(receiver: PostingReceiver) -> Fault:
    """The webhook's receiver goes away, and comes back after a while."""

    def kill_receiver(_: ServerUnderTest, chance: random.Random) -> None:
        receiver.kill()
        time.sleep(chance.uniform(0.0, DOWN_SECONDS_MAX))
        receiver.start()

    return kill_receiver


def killed_postgres(postgres: PostgresServer) -> Fault:
    """PostgreSQL goes away, and comes back after a while."""

    def kill_postgres(_: ServerUnderTest, chance: random.Random) -> None:
        postgres.kill()
        time.sleep(chance.uniform(0.0, DOWN_SECONDS_MAX))
        postgres.start()

    return kill_postgres


def rows_of_others(receiver: PostingReceiver) -> Iterator[FoundRow]:
    """The rows that the receiver took, but for those of persons: it is told of an erasure and can't be looked into."""
    bodies = (body for body in receiver.bodies() if json.loads(body)["type"] == "rows")
    return (row for row in read_postings(bodies) if not row.distinct_id.startswith(PERSON))


class Persons:
    """Rows of persons, sent beside the game's and erased."""

    def __init__(self) -> None:
        self._names = (f"{PERSON}{number}" for number in itertools.count())
        self._sent: list[str] = []

    def erase_person(self, server: ServerUnderTest, chance: random.Random) -> None:
        """A fault: a person's rows come in and are to be erased, and the pipeline is killed on the way at times."""
        name = next(self._names)
        events = [{"event": event, "distinctId": name} for event in ("a", "a", "b")]
        for _ in range(2):
            with contextlib.suppress(httpx.HTTPError):
                httpx.post(
                    f"{server.url}/batch", json={"token": server.token, "events": events}, trust_env=False, timeout=60
                )
            time.sleep(chance.uniform(0.0, 0.5))
        self._sent.append(name)
        # The order may not get through: what was sent is erased before the reckoning at the latest.
        server.run("erase", name, "--yes", "--wait", "0")
        time.sleep(chance.uniform(0.0, 1.5))
        if chance.random() < 0.7:
            kill_pipeline(server, chance)

    def see_them_gone(self, server: ServerUnderTest) -> None:
        """Return when everybody's rows are erased everywhere. Raises ServerFailed."""
        while self._sent:
            erased = server.run("erase", self._sent[-1], "--yes", "--json", "--wait", "300")
            try:
                is_done = json.loads(erased.stdout)["is_done"]
            except ValueError:
                is_done = False
            if not is_done:
                raise ServerFailed(f"erase ended with status {erased.returncode}:\n{erased.stdout}{erased.stderr}")
            self._sent.pop()


class Report:
    """What a campaign came to, over all its servers."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.began = time.monotonic()
        self.rounds = 0
        self.audits = 0
        self.actions: Counter[str] = Counter()
        self.clients: Counter[str] = Counter()
        self.rows: Counter[str] = Counter()
        self.found: Counter[str] = Counter()
        """Rows by destination."""
        self.faults: Counter[str] = Counter(dict.fromkeys(FAULT_NAMES, 0))
        self.failures: list[str] = []

    def add(self, game: Game, judgements: dict[str, Judgement]) -> None:
        """Take the last reckoning of a server into account."""
        self.rounds += game.rounds
        self.actions += game.faults
        self.clients.update(msgspec.structs.asdict(game.load.counts))
        one = next(iter(judgements.values()))
        self.rows.update(sent=one.sent, acknowledged=one.acknowledged, refused=one.refused, unsure=one.unsure)
        self.found.update({name: told.found for name, told in judgements.items()})
        for told in judgements.values():
            self.faults.update({name: fault.count for name, fault in told.faults.items()})

    @property
    def is_clean(self) -> bool:
        return not self.failures and not any(self.faults.values())

    def document(self) -> dict[str, object]:
        """The report as JSON."""
        return {
            "seed": self.seed,
            "minutes": round((time.monotonic() - self.began) / 60, 1),
            "rounds": self.rounds,
            "audits_balanced": self.audits,
            "actions": dict(sorted(self.actions.items())),
            "clients": dict(self.clients),
            "rows": dict(self.rows),
            "rows_found": dict(self.found),
            "faults": dict(self.faults),
            "failures": self.failures,
        }


def play_server(report: Report, directory: Path, seed: int, rounds: int, deadline: float) -> bool:
    """Play up to so many rounds on one server; whether all went well, and the directory is gone then."""
    judgements: dict[str, Judgement] = {}
    with a_game(directory, seed, with_postgres=why_not() is None) as (game, persons):
        try:
            for _ in range(RECKONINGS_A_SERVER):
                left = rounds - game.rounds
                if left <= 0 or time.monotonic() > deadline:
                    break
                game.play(min(left, ROUNDS_A_RECKONING), lambda: time.monotonic() < deadline)
                persons.see_them_gone(game.server)
                judgements = game.reckon()
                report.audits += 1
                say(f"seed {seed}, round {game.rounds}: {next(iter(judgements.values())).lines()[0]}")
                if not all(told.is_clean for told in judgements.values()):
                    break
        except (ServerFailed, AssertionError) as failure:
            report.failures.append(f"seed {seed}, round {game.rounds + 1}: {failure}")
        if judgements:
            report.add(game, judgements)
    for name, told in judgements.items():
        if not told.is_clean:
            report.failures.append(f"seed {seed}, {name}: " + "; ".join(told.lines()))
    if report.is_clean:
        shutil.rmtree(directory)
    return report.is_clean


def say(text: str) -> None:
    """A line for whoever watches, at once."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main() -> None:
    """Play until the rounds or the minutes are over, and tell what it came to."""
    parser = argparse.ArgumentParser(
        description="Kill and freeze everything while clients send; nothing may be missing."
    )
    parser.add_argument("--rounds", type=int, help="default: 32, or without end when --minutes is given")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--report", type=Path, help="write the report there, as JSON")
    asked = parser.parse_args()
    # By SIGTERM, too, everything that was started is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    # That PostgreSQL takes a while to come up again is part of the game.
    stamina.instrumentation.set_on_retry_hooks([])
    rounds_wanted = asked.rounds or (sys.maxsize if asked.minutes else 32)
    deadline = time.monotonic() + asked.minutes * 60 if asked.minutes else float("inf")
    if reason := why_not():
        say(f"without PostgreSQL: {reason}")
    report = Report(asked.seed)
    directory = Path(tempfile.mkdtemp(prefix="counterfoil-crash-"))
    say(f"seed {asked.seed}, in {directory}, which stays when a promise is broken")
    for number in itertools.count():
        left = rounds_wanted - report.rounds
        if left <= 0 or time.monotonic() > deadline:
            break
        if not play_server(report, directory / str(number), asked.seed + number, left, deadline):
            break
    told = json.dumps(report.document(), indent=2)
    print(told)
    if asked.report:
        asked.report.write_text(told + "\n")
    if not report.is_clean:
        sys.exit(1)
    shutil.rmtree(directory)


if __name__ == "__main__":
    main()
