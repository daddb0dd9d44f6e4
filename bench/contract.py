"""What reading, judging and writing a row costs: µs a row, the best of some runs, for rows of several kinds.

    python -m bench.contract

`typical` and `wide` are what senders send; `broken` is a batch with one broken row in ten, of every kind in turn.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from counterfoil.contract.answers import batch_answer
from counterfoil.contract.limits import Limits
from counterfoil.contract.requests import read_batch
from counterfoil.contract.rows import RowRules, judge_batch

NOW_MS = 1_780_000_000_000
ROWS = 1000
RUNS = 40
LIMITS = Limits()
RULES = RowRules(LIMITS, 7 * 86_400_000, 300_000)

Row = dict[str, Any]


def typical(index: int) -> Row:
    return {
        "event": "Purchase",
        "distinctId": f"order-{index:08d}-4f1c",
        "userId": f"user-{index}",
        "email": f"someone{index}@example.com",
        "time": NOW_MS - index,
        "eventProperties": {
            "price": 12.5 + index,
            "currency": "EUR",
            "quantity": index,
            "sku": "A-123456",
            "express": True,
        },
    }


def nested(index: int) -> Row:
    """Typical, with a list of objects in its properties."""
    items = [{"sku": f"A-{item}", "price": 9.99, "tags": ["a", "b"]} for item in range(3)]
    return typical(index) | {"eventProperties": {"total": 29.97, "currency": "EUR", "items": items}}


def wide(index: int) -> Row:
    """With ten properties of each table, as a web site's server sends them."""
    return typical(index) | {
        "userProperties": {
            "city": "Bonn",
            "country": "DE",
            "email": f"someone{index}@example.com",
            "external_id": f"c-{index}",
            "first_name": "Ada",
            "last_name": "Müller",
            "phone_number": "+49 228 1234567",
            "utm_campaign": "spring",
            "utm_source": "newsletter",
            "custom_properties": {"plan": "pro", "seats": 12},
        },
        "defaultProperties": {
            "browser_language": "de-DE",
            "browser_name": "Firefox",
            "browser_version": "128.0",
            "current_url": "https://shop.example.com/basket?step=2",
            "device_type": "desktop",
            "host": "shop.example.com",
            "os_name": "Linux",
            "pathname": "/basket",
            "screen_height": 1080,
            "screen_width": 1920,
            "user_agent": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
        },
        "identityContext": {"ip": "192.0.2.1", "userAgent": "Mozilla/5.0"},
    }


def unknown(index: int) -> Row:
    """Typical, with a field that the contract does not know."""
    return typical(index) | {"source": "shop"}


BROKEN: tuple[Row, ...] = (
    {"distinctId": None},
    {"event": 1},
    {"time": 0},
    {"eventProperties": []},
    {"email": "x" * 1001},
    {"userId": False},
    {"event": ""},
)


def batch(rows: list[Row]) -> bytes:
    return json.dumps({"token": "t", "events": rows}, separators=(",", ":"), ensure_ascii=False).encode()


def batches() -> dict[str, bytes]:
    """A body of ROWS rows of each kind."""
    broken = [typical(index) | (BROKEN[index // 10 % len(BROKEN)] if index % 10 == 9 else {}) for index in range(ROWS)]
    escaped = json.dumps(
        {"token": "t", "events": [typical(index) | {"event": "Größe"} for index in range(ROWS)]}
    ).encode()
    return {
        **{make.__name__: batch([make(index) for index in range(ROWS)]) for make in (typical, nested, wide, unknown)},
        "spaced, escaped": escaped,
        "broken 1 in 10": batch(broken),
    }


def judge(body: bytes) -> None:
    judged = judge_batch(read_batch(body, LIMITS), RULES, NOW_MS)
    batch_answer(judged.row_count, judged.faults)


def best_us(act: Callable[[], None], runs: int = RUNS) -> float:
    """The shortest of some runs, in µs."""
    best = float("inf")
    for _ in range(runs):
        begun = time.process_time()
        act()
        best = min(best, time.process_time() - begun)
    return best * 1e6


def run() -> dict[str, float]:
    """Print and return µs a row of each kind, from bytes to canonical rows, hashes and the answer."""
    figures: dict[str, float] = {}
    for name, body in batches().items():
        figures[name] = best_us(lambda body=body: judge(body)) / ROWS  # type: ignore[misc]
        print(f"contract  {name:<16} {len(body) // ROWS:>5} bytes/row  {figures[name]:6.2f} µs/row")
    return figures


if __name__ == "__main__":
    run()
