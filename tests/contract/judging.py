"""Rows, judged as in a /batch, for tests."""

from __future__ import annotations

import json
from typing import Any

from counterfoil.contract.limits import Limits
from counterfoil.contract.requests import read_batch
from counterfoil.contract.rows import JudgedRows, RowRules, judge_batch

NOW_MS = 1_780_000_000_000
DAY_MS = 86_400_000
RULES = RowRules(Limits(), 7 * DAY_MS, 300_000)
MADE = "01890a5d-ac96-774b-bcce-b302099a8057"


def judged(*rows: bytes | dict[str, Any], rules: RowRules = RULES) -> JudgedRows:
    texts = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    body = b'{"token":"t","events":[' + b",".join(texts) + b"]}"
    return judge_batch(read_batch(body, rules.limits), rules, NOW_MS)


def row(**fields: Any) -> dict[str, Any]:
    return {"event": "Sign Up", "distinctId": "1"} | fields


def canonical(*args: Any, **fields: Any) -> Any:
    """The canonical row that a row becomes, alone."""
    result = judged(*args or [row(**fields)])
    assert not result.faults, result.faults
    return json.loads(result.bodies[0])


def fault(*args: Any, **fields: Any) -> str:
    """The message of a row that is invalid, without where it lies."""
    message = judged(row(), *args or [row(**fields)]).faults[1]
    assert message.startswith("events[1]")
    return message.removeprefix("events[1]").removeprefix(".").removeprefix(": ")
