"""Rounds of a cruel game: clients send, the whole server dies by SIGKILL, is started again, and nothing may be missing.

`make crash ARGS=--rounds=20` plays it for long. Every round goes on in the directory that the rounds before left. After
each, whatever was acknowledged must lie in the table exactly once and as it was sent, nothing that was not sent may lie
there, and the audit must balance.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
from ours_privacy import APIError, OursPrivacy

from tests.e2e.server import TOKEN, Server, until

CLIENTS = 4
ROWS_MAX = 120
REPEATED = 0.15
"""How often a client sends again what was acknowledged already."""


class RoundResult(msgspec.Struct, frozen=True):
    """What a round came to."""

    acknowledged: int
    unsure: int
    in_table: int
    ready_seconds: float


class Clients:
    """Threads that send through the official SDK and keep account of what was answered."""

    def __init__(self, url: str, name: str) -> None:
        self.acknowledged: set[str] = set()
        self.unsure: list[list[dict[str, Any]]] = []
        """Batches without an answer: each of their rows may have been taken or not."""
        self._client = OursPrivacy(base_url=url, max_retries=0, timeout=10.0)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._name = name
        self._threads = [threading.Thread(target=self._send_on, args=(number,)) for number in range(CLIENTS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Return when no client sends any more."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def close(self) -> None:
        self._client.close()

    def send(self, events: list[dict[str, Any]]) -> bool:
        """Send one batch, or one event by /track; whether there was an answer."""
        try:
            if len(events) == 1:
                self._client.track.event(token=TOKEN, **events[0])
                taken = events
            else:
                answer = self._client.batch.create(token=TOKEN, events=events)  # type: ignore[arg-type]
                taken = [event for event, result in zip(events, answer.results, strict=True) if result.success]
        except APIError:
            with self._lock:
                self.unsure.append(events)
            return False
        with self._lock:
            self.acknowledged.update(event["distinct_id"] for event in taken)
        return True

    def _send_on(self, number: int) -> None:
        chance = random.Random(f"{self._name} {number}")
        sent = 0
        last: list[dict[str, Any]] = []
        while not self._stop.is_set():
            if last and chance.random() < REPEATED:
                events = last
            else:
                count = chance.choice((1, chance.randrange(2, ROWS_MAX)))
                events = [an_event(f"{self._name}-{number}-{sent + n}") for n in range(count)]
                sent += count
            if self.send(events):
                last = events
            elif self._stop.wait(0.02):
                return


def an_event(distinct_id: str) -> dict[str, Any]:
    """The event of a distinctId; what it holds follows from its name."""
    return {
        "event": "Purchase",
        "distinct_id": distinct_id,
        "user_id": distinct_id[::-1],
        "event_properties": {"name": distinct_id, "number": len(distinct_id), "text": "ü" * (len(distinct_id) % 7)},
    }


class Game:
    """Rounds on one server's directory."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.server = Server(directory, workers=2)
        self._chance = random.Random(seed)
        self._acknowledged: set[str] = set()
        self._round_count = 0

    def play(self) -> RoundResult:
        """One round; fails when a promise is broken."""
        self._round_count += 1
        clients = Clients(self.server.url, f"r{self._round_count}")
        self.server.start()
        clients.start()
        # How long a client may send, and how far settle and deliver come, is left to chance.
        time.sleep(self._chance.uniform(0.05, 1.2))
        self.server.kill()
        clients.stop()
        if self._chance.random() < 0.3:
            # It dies again while it is coming up, perhaps in the middle of mending what the first death left.
            self.server.start(wait=False)
            time.sleep(self._chance.uniform(0.0, 1.5))
            self.server.kill()
        began = time.monotonic()
        self.server.start()
        ready_seconds = time.monotonic() - began
        unsure = sum(map(len, clients.unsure))
        self._repeat_some(clients)
        clients.close()
        self._acknowledged |= clients.acknowledged
        self._await_delivery()
        in_table = self.check()
        assert self.server.stop() == 0
        return RoundResult(len(clients.acknowledged), unsure, in_table, ready_seconds)

    def _repeat_some(self, clients: Clients) -> None:
        """Send half of what had no answer again, as a sender does that wants to be sure."""
        unsure, clients.unsure = clients.unsure, []
        for events in unsure:
            if self._chance.random() < 0.5:
                assert clients.send(events), "a server that is ready takes rows"

    def _await_delivery(self) -> None:
        """Return when all that settle can see is in the table."""

        status: dict[str, Any] = {}

        def is_done() -> bool:
            status.update(self.server.status())
            return all(writer["settled"] == writer["written"] for writer in status["writers"]) and all(
                destination["pending"] == 0 for destination in status["destinations"]
            )

        try:
            until(lambda: is_done() or None, "everything settled and delivered")
        except AssertionError as failure:
            raise AssertionError(f"{failure}; the state: {json.dumps(status)}") from failure

    def check(self) -> int:
        """Hold the table and the books against what the clients know; the rows of the table."""
        rows = self.server.rows()
        counts = Counter(row["distinct_id"] for row in rows)
        twice = [name for name, count in counts.items() if count > 1]
        assert not twice, f"{len(twice)} rows lie in the table more than once, {twice[0]} for one"
        missing = self._acknowledged - counts.keys()
        assert not missing, f"{len(missing)} acknowledged rows are missing, {min(missing)} for one"
        for row in rows:
            sent = an_event(row["distinct_id"])
            assert row["user_id"] == sent["user_id"]
            assert json.loads(row["event_properties"]) == sent["event_properties"]
        self.server.run("audit")
        return len(rows)


def main() -> None:
    """Play rounds and tell how each went."""
    parser = argparse.ArgumentParser(description="Kill the server while clients send; nothing may be missing.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    asked = parser.parse_args()
    print(f"seed {asked.seed}")
    directory = Path(tempfile.mkdtemp(prefix="counterfoil-crash-"))
    print(f"in {directory}, which stays when a promise is broken")
    game = Game(directory, asked.seed)
    for number in range(1, asked.rounds + 1):
        result = game.play()
        print(
            f"round {number}: {result.acknowledged:,} rows acknowledged, {result.unsure:,} without an answer; ready"
            f" again after {result.ready_seconds:.1f} s; {result.in_table:,} rows in the table, each once",
            flush=True,
        )
    shutil.rmtree(directory)


if __name__ == "__main__":
    main()
