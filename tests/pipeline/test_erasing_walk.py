"""Erasing among everything else, in orders that nobody thought of: random steps, crashes, and the books after each."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch
from uuid import UUID

import pytest

from counterfoil import failpoints
from counterfoil.contract.facts import RowFlag
from counterfoil.contract.subject import Subject
from counterfoil.errors import DestinationDown
from counterfoil.pipeline.audit import audit
from counterfoil.pipeline.dead import DeadFilter, find_dead, plan_retry
from counterfoil.pipeline.erasing import Eraser
from counterfoil.pipeline.orders import Erase, carry_out
from counterfoil.pipeline.replay import Replay, ReplayFilter
from counterfoil.pipeline.retention import Retention
from tests.destinations.memory import MemoryDestination
from tests.pipeline.frames import Row
from tests.pipeline.test_erasing import POINTS, Crash, House, crash_now

SEEDS = 10
STEPS = 60
PERSONS = [f"person-{number}-x" for number in range(4)]
DELIVER_POINTS = ["deliver.before", "deliver.before_cursor", "deliver.before_cursor=2", "deliver.after_cursor"]


class Walk:
    """A house, in which anything may come next; `late` is a destination that is registered on the way."""

    def __init__(self, root: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.house = House(root)
        self.late = MemoryDestination("late")
        self.orders = self.others = 0
        self.steps: list[Callable[[], None]] = [
            *[self.receive] * 5,
            *[self.settle] * 4,
            *[self.deliver] * 8,
            *[self.crash_in_a_delivery] * 2,
            *[self.remove, self.fail_to_erase] * 3,
            *[self.order, self.erase] * 2,
            self.refuse, self.retry, self.send_twice, self.roll, self.crash, self.register,
            self.order_meanwhile,
        ]  # fmt: skip
        self.begin()

    def begin(self) -> None:
        if "late" in self.house.ledger.destinations():
            self.register()
        self.house.eraser = Eraser(self.house.ledger, self.house.queue, self.house.gate, settle=self.settle_for_it)

    def settle_for_it(self) -> int:
        self.roll()
        return self.house.settler.step()

    def step(self) -> None:
        self.random.choice(self.steps)()
        self.house.assert_balanced()

    def settle(self) -> None:
        self.house.settle()

    def receive(self) -> None:
        rows = []
        for _ in range(self.random.randint(1, 4)):
            self.others += 1
            name = self.random.choice([*PERSONS, f"other-{self.others}"])
            rows.append(
                Row(
                    name,
                    content=self.random.randint(0, 1),
                    user_id=self.random.choice(["u1", "u2", None]) if name in PERSONS else None,
                    flags=self.random.choice([*[RowFlag(0)] * 4, RowFlag.BLOCKED, RowFlag.TEST]),
                    destinations=self.random.choice([None, None, ("hook",), ("lake",)]),
                )
            )
        self.house.receive(*rows, source=self.random.choice(["web", "app"]))

    def deliver(self) -> None:
        try:
            self.house.deliver(*self.random.choice([["lake"], ["hook"], *[list(self.house.deliverers)] * 3]))
        except DestinationDown:
            return

    def cut(self, point: str, step: Callable[[], None]) -> None:
        failpoints.arm(point, crash_now)
        try:
            step()
        except Crash:
            failpoints.arm("")
            self.crash()
        finally:
            failpoints.arm("")

    def crash_in_a_delivery(self) -> None:
        self.cut(self.random.choice([*DELIVER_POINTS, *POINTS[5:]]), self.deliver)

    def order(self) -> None:
        subject = Subject(user_id=self.random.choice(["u1", "u2"]))
        if self.random.random() < 0.6:
            subject = Subject(distinct_id=self.random.choice(PERSONS), source=self.random.choice([None, "web"]))
        self.orders += 1
        order = Erase(UUID(int=self.orders), subject)
        carry_out(self.house.ledger, order, self.house.clock_ms(), list(self.house.deliverers))

    def erase(self) -> None:
        point = self.random.choice(["", "", *POINTS[:5]])
        self.cut(point, self.erase_all)

    def erase_all(self) -> None:
        while self.house.eraser.step():
            pass

    def order_meanwhile(self) -> None:
        """Somebody is erased while the table takes its next delivery; it may be down right after."""

        def meanwhile(_: object) -> None:
            self.house.lake.after = lambda _: None
            self.order()
            self.erase_all()
            if self.random.random() < 0.4:
                raise DestinationDown("lake: gone after its commit")

        self.house.lake.after = meanwhile

    def fail_to_erase(self) -> None:
        with patch.object(self.house.lake, "erase", side_effect=DestinationDown("lake: busy")):
            self.house.deliverers["lake"].erase_once()

    def refuse(self) -> None:
        self.house.lake.refuses = {name: "nul" for name in PERSONS if self.random.random() < 0.4}

    def retry(self) -> None:
        for order in plan_retry(find_dead(self.house.ledger, self.house.queue, DeadFilter())):
            carry_out(self.house.ledger, order, self.house.clock_ms())

    def send_twice(self) -> None:
        house = self.house
        for order in Replay(house.ledger, house.queue, house.counts("hook"), None, ReplayFilter()).orders():
            carry_out(house.ledger, order, house.clock_ms())

    def remove(self) -> None:
        retention = Retention(self.house.ledger, self.house.queue, list(self.house.deliverers), 0)
        while retention.step():
            pass

    def roll(self) -> None:
        if self.house.queue.live_segments():
            self.house.life.roll()

    def crash(self) -> None:
        self.house.crash()
        self.begin()

    def register(self) -> None:
        self.house.ledger.register_destination("late", from_oldest=self.random.random() < 0.7)
        self.house.deliverers["late"] = self.house.deliverer(self.late)

    def finish(self) -> None:
        """Nothing fails any more, and all is done."""
        self.house.lake.refuses, self.house.lake.after = {}, lambda _: None
        self.house.settle()
        self.erase_all()
        self.house.deliver(*self.house.deliverers)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_in_any_order(tmp_path: Path, seed: int) -> None:
    """The books balance after each step; in the end all is done, and tables hold what counts as delivered."""
    walk = Walk(tmp_path, seed)
    house = walk.house
    try:
        for _ in range(STEPS):
            walk.step()
        walk.finish()
        assert all(each.is_done for each in house.ledger.erasures())
        tables = {
            name: table for name, table in (("lake", house.lake), ("late", walk.late)) if name in house.deliverers
        }
        assert audit(house.ledger, house.queue, {name: table.held for name, table in tables.items()}).is_balanced
        for name, table in tables.items():
            counts, seqs = house.counts(name), [row.seq for row in table.shelf.rows]
            assert (counts.delivered, counts.pending) == (len(seqs), 0)
            assert len(seqs) == len(set(seqs))
    finally:
        house.life.end()
        house.ledger.close()
