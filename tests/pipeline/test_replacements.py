"""A row whose frame was damaged before its delivery is delivered after all, when it was sent again."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from counterfoil.ledger import LedgerReader
from tests.destinations.lake import LEDGER
from tests.pipeline.frames import Row
from tests.pipeline.house import ONE, SETTINGS, House


def damage(house: House, frame: int) -> None:
    """Let a frame be damaged from now on."""
    house.queue.damaged.add(house.queue.frames[ONE][frame].position)


def dead_at(house: House, name: str) -> list[str]:
    ledger = LedgerReader.open(house.places.ledger, SETTINGS, LEDGER)
    try:
        return [letter.reason for letter in ledger.dead_letters(name)]
    finally:
        ledger.close()


def test_a_repeat_that_came_already_takes_the_place(tmp_path: Path) -> None:
    """The repeat of a damaged row is delivered in its place, once, and only where the row is missing."""
    house = House(tmp_path)
    house.receive("r1", "r2")
    house.receive("r1")
    house.run(delivering=["a"])
    damage(house, 0)
    house.run()
    assert house.ids() == [["r1", "r2"], ["r1"]]
    assert dead_at(house, "b") == ["damaged"]
    house.run()
    assert house.ids() == [["r1", "r2"], ["r1"]]


def test_a_repeat_that_comes_later_takes_the_place(tmp_path: Path) -> None:
    """A sender that sends a damaged row again mends it, also in another life; a third time it is a repeat like any."""
    house = House(tmp_path)
    house.receive("r1", "r2")
    house.run(delivering=[])
    damage(house, 0)
    house.run()
    assert house.ids() == [[], []]
    house.receive("r2")
    house.receive("r2")
    house.run()
    assert house.ids() == [["r2"]] * 2
    house.receive("r2", "r1")
    house.run()
    assert house.ids() == [["r1", "r2"]] * 2
    house.source()


def test_another_content_does_not_take_the_place(tmp_path: Path) -> None:
    """A conflict is another row: the first one stays dead."""
    house = House(tmp_path)
    house.receive("r1")
    house.run(delivering=[])
    damage(house, 0)
    house.receive(Row("r1", content=5))
    house.run()
    assert house.ids() == [[], []]
    house.source(dead=1)


def test_a_repeat_that_is_damaged_too_is_followed_by_the_next(tmp_path: Path) -> None:
    """A replacement that can't be read when it is delivered is dead as damaged again, and replaced again."""
    house = House(tmp_path)
    house.receive("r1")
    house.receive("r1")
    house.run(delivering=[])
    damage(house, 0)
    damage(house, 1)
    house.run()
    house.receive("r1")
    house.run()
    assert house.ids() == [["r1"]] * 2
    house.source()


@pytest.mark.parametrize("seed", range(4))
def test_any_damage_at_any_time(tmp_path: Path, seed: int) -> None:
    """Whatever is damaged whenever: a row is delivered once where any whole copy of it is left, and never twice."""
    chance = random.Random(seed)
    house = House(tmp_path)
    for _ in range(5):
        for _ in range(chance.randrange(1, 4)):
            house.receive(*(str(chance.randrange(15)) for _ in range(chance.randrange(1, 5))))
        house.run(delivering=chance.sample(["a", "b"], chance.randrange(3)))
        damage(house, chance.randrange(len(house.queue.frames[ONE])))
    for _ in range(3):
        house.run()
    for destination in house.destinations:
        assert len(set(destination.ids())) == len(destination.ids())
        whole = {
            row.decode().split('"')[-2]
            for frame in house.queue.frames[ONE]
            if frame.position not in house.queue.damaged
            for row in frame.rows.split(b"\n")
        }
        settled_whole = whole & set(destination.ids())
        assert settled_whole == whole
