"""What became of each row: what was answered, held against what a destination holds.

    fault                 a row that
    lost                  was acknowledged and is not there
    twice                 is there more than once
    never_sent            is there and was not sent in this run
    changed               is there with other content than was sent
    neither               was answered with neither success nor error
    wrongly_refused       is valid, and was refused
    wrongly_taken         is invalid, and was acknowledged or delivered

Rows without an answer are `unsure`, and no fault whether they are there or not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from counterfoil.selftest.content import Content
from counterfoil.selftest.journal import Journal

EXAMPLES_MAX = 10

FIELDS = ("event", "userId", "externalId", "email", "eventProperties", "userProperties", "identityContext")
"""Compared as they are; `time`, `defaultProperties` and unknown fields by rules of their own."""

_KNOWN = frozenset({*FIELDS, "distinctId", "time", "defaultProperties"})
_encode = msgspec.json.Encoder(order="sorted").encode


class FoundRow(msgspec.Struct, frozen=True):
    """A row as a destination holds it."""

    distinct_id: str
    fields: dict[str, Any]
    """By the names of the API; `extra` has the fields the contract does not know. What is absent may be None."""


class Fault(msgspec.Struct):
    """How often a fault was found, and for which rows."""

    count: int = 0
    examples: list[str] = []
    """distinctIds of the first few."""

    def add(self, distinct_id: str) -> None:
        self.count += 1
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(distinct_id)


class Judgement(msgspec.Struct):
    """What became of all rows of a run."""

    sent: int = 0
    acknowledged: int = 0
    refused: int = 0
    unsure: int = 0
    found: int = 0
    lost: Fault = msgspec.field(default_factory=Fault)
    twice: Fault = msgspec.field(default_factory=Fault)
    never_sent: Fault = msgspec.field(default_factory=Fault)
    changed: Fault = msgspec.field(default_factory=Fault)
    neither: Fault = msgspec.field(default_factory=Fault)
    wrongly_refused: Fault = msgspec.field(default_factory=Fault)
    wrongly_taken: Fault = msgspec.field(default_factory=Fault)

    @property
    def faults(self) -> dict[str, Fault]:
        """Every kind of fault, by name."""
        return {name: getattr(self, name) for name in FAULT_NAMES}

    @property
    def is_clean(self) -> bool:
        """Whether there is no fault of any kind."""
        return not any(fault.count for fault in self.faults.values())

    def lines(self) -> list[str]:
        """The judgement for people, a fact a line."""
        told = [
            f"{self.sent:,} rows sent: {self.acknowledged:,} acknowledged, {self.refused:,} refused,"
            f" {self.unsure:,} without an answer; {self.found:,} rows found"
        ]
        for name, fault in self.faults.items():
            examples = f": {', '.join(fault.examples)}" if fault.examples else ""
            told.append(f"{name.replace('_', ' ')}: {fault.count:,}{examples}")
        return told


FAULT_NAMES = ("lost", "twice", "never_sent", "changed", "neither", "wrongly_refused", "wrongly_taken")


def judge(content: Content, journal: Journal, found: Iterable[FoundRow]) -> Judgement:
    """Hold the rows that a destination holds against what was answered; `found` is read once, in any order."""
    told = Judgement(sent=len(journal))
    seen = bytearray(len(journal))
    for row in found:
        told.found += 1
        number = content.number_of(row.distinct_id)
        if number is not None and number >= len(seen) and journal.is_partial:
            seen += bytes(number + 1 - len(seen))
        if number is None or number >= len(seen):
            told.never_sent.add(row.distinct_id)
            continue
        if seen[number]:
            told.twice.add(row.distinct_id)
        seen[number] = 1
        if not content.is_valid(number):
            told.wrongly_taken.add(row.distinct_id)
        elif not is_as_sent(content.row(number), row.fields):
            told.changed.add(row.distinct_id)
    for number in range(len(journal)):
        _judge_answer(content, journal, number, bool(seen[number]), told)
    return told


def _judge_answer(content: Content, journal: Journal, number: int, is_there: bool, told: Judgement) -> None:
    is_taken, is_refused, is_valid = journal.is_taken(number), journal.is_refused(number), content.is_valid(number)
    told.acknowledged += is_taken
    told.refused += is_refused
    told.unsure += journal.is_unsure(number)
    if is_taken and is_valid and not is_there:
        told.lost.add(content.distinct_id(number))
    if is_taken and not is_valid and not is_there:
        told.wrongly_taken.add(content.distinct_id(number))
    if is_refused and is_valid:
        told.wrongly_refused.add(content.distinct_id(number))
    if journal.got_neither(number):
        told.neither.add(content.distinct_id(number))


def is_as_sent(sent: dict[str, Any], fields: dict[str, Any]) -> bool:
    """Whether what a destination holds is what was sent, and what the server adds is as the contract says."""
    defaults = dict(fields.get("defaultProperties") or {})
    # The server sets these two (contract.md section 4); the first one always.
    if not isinstance(defaults.pop("received_at", None), str):
        return False
    defaults.pop("version", None)
    if "time" in sent and sent["time"] != fields.get("time"):
        return False
    expected = [sent.get(name) for name in FIELDS]
    expected += [sent.get("defaultProperties") or {}, {n: v for n, v in sent.items() if n not in _KNOWN}]
    held = [fields.get(name) for name in FIELDS] + [defaults, fields.get("extra") or {}]
    # Compared as JSON, because to Python True is 1 and 1 is 1.0.
    return _encode(expected) == _encode(held)
