from __future__ import annotations

import json

import pytest

from counterfoil.selftest.content import BROKEN_EVERY, Content
from counterfoil.selftest.judging import is_as_sent
from tests.contract.judging import NOW_MS, judged

RUN = Content("canary0ab1", 1_790_000_000_000)


def test_a_row_is_found_by_its_distinct_id() -> None:
    """A distinctId leads back to its number, and one that no run sends leads to none."""
    assert RUN.number_of(RUN.distinct_id(7)) == 7
    for other in ("canary0ab1-07", "canary0ab1-", "canary0ab1-x", "canary0ab2-7", "canary0ab1-\u0667", "7"):
        assert RUN.number_of(other) is None


def test_each_text_holds_the_canary() -> None:
    """Every string value that a row of the run carries has the run's name in it."""

    def texts(value: object) -> list[str]:
        if isinstance(value, dict):
            return [text for one in value.values() for text in texts(one)]
        if isinstance(value, list):
            return [text for one in value for text in texts(one)]
        return [value] if isinstance(value, str) else []

    for row in RUN.rows(range(300)):
        assert all(RUN.run in text for text in texts(row))


def test_all_fields_come() -> None:
    """Among a few hundred rows, every field of a row is there and absent, and one in `BROKEN_EVERY` is invalid."""
    rows = RUN.rows(range(BROKEN_EVERY * 3))
    names = set().union(*rows)
    assert len(names) == 11
    assert sum(not RUN.is_valid(number) for number in range(BROKEN_EVERY * 3)) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"event": "Purchase"},
        {"userId": "x"},
        {"time": 1},
        {"eventProperties": {}},
        {"extra": {"more": 1}},
        {"defaultProperties": {"received_at": "now", "more": 1}},
        {"defaultProperties": {}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_change_of_any_field_is_seen(change: dict[str, object]) -> None:
    """A row of which one field differs is not as it was sent; one with the server's own fields beside it is."""
    sent = next(row for row in RUN.rows(range(100)) if "time" in row and "defaultProperties" not in row)
    held = {**sent, "defaultProperties": {"received_at": "now", "version": "sdk"}}
    held["extra"] = {"unknownField": held.pop("unknownField")} if "unknownField" in held else None
    assert is_as_sent(sent, held)
    assert not is_as_sent(sent, {**held, **change})


def test_true_is_not_one() -> None:
    """Values that Python holds for equal and JSON does not are a change."""
    sent = RUN.row(1)
    held = json.loads(json.dumps(sent))
    held["defaultProperties"] = {"received_at": "now", **sent.get("defaultProperties", {})}
    held["extra"] = {"unknownField": held.pop("unknownField")} if "unknownField" in held else None
    assert is_as_sent(sent, held)
    held["eventProperties"]["nested"]["list"][2] = int(held["eventProperties"]["nested"]["list"][2])
    assert not is_as_sent(sent, held)


def test_a_server_of_the_contract_takes_the_rows_as_they_are() -> None:
    """The house's own contract accepts exactly the valid rows, and leaves each value as it is."""
    content = Content("canary0ab1", NOW_MS)
    numbers = range(BROKEN_EVERY * 2)
    result = judged(*content.rows(numbers))
    assert set(result.faults) == {number for number in numbers if not content.is_valid(number)}
    taken = [number for number in numbers if content.is_valid(number)]
    for number, body in zip(taken, result.bodies, strict=True):
        held = json.loads(body)
        held["defaultProperties"] = {"received_at": "now", **held.get("defaultProperties", {})}
        assert is_as_sent(content.row(number), held)
