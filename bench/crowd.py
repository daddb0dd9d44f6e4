"""The worst requests that the limits allow, many at once, at one gateway worker: its memory, and how long others wait.

    python -m bench crowd

Eight senders send the same request of 16 MiB over and over, while another sends one small request after the other. The
worker refuses what is over its budget; of those it takes, one is judged at a time, in pieces. Memory is the worker's
peak (expected under 150 MiB).
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path

import httpx
import msgspec

from bench.gateway import MIB, started
from bench.server import TOKEN
from bench.worst import CASES, HEAD

SENDERS = 8
SECONDS = 6
NAMES = (
    "empty objects as rows",
    "16 rows of unknown arrays",
    "10,000 rows of 60 levels",
    "one huge row of arrays",
    "16 rows of escapes",
    "10,000 rows of floats",
    "10,000 rows of lone surrogates",
)
JSON = {"content-type": "application/json"}


def run() -> None:
    """Print the figures of every case."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR"), prefix="bench-crowd-") as name:
        for index, case in enumerate(NAMES):
            body = b'{"token":"%b",' % TOKEN.encode() + CASES[case]()[HEAD.index(b'"events"') :]
            with started("gateway", Path(name) / str(index)) as gateway:
                statuses, waits = _crowd(f"http://127.0.0.1:{gateway.port}/api/v1/batch", body)
                memory = gateway.figures().memory_bytes_max
            answered = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
            waits.sort()
            print(
                f"{case:<32} {memory / MIB:4.0f} MiB  {answered:<24} "
                f"others: median {waits[len(waits) // 2]:5.0f} ms, longest {waits[-1]:5.0f} ms",
                flush=True,
            )


def _crowd(url: str, body: bytes) -> tuple[dict[int, int], list[float]]:
    """How the large requests were answered, and how many ms each small one beside them took."""
    statuses: dict[int, int] = {}
    waits: list[float] = []
    end = time.monotonic() + SECONDS

    def send_large() -> None:
        with httpx.Client(timeout=60, headers=JSON) as client:
            while time.monotonic() < end:
                status = client.post(url, content=body).status_code
                statuses[status] = statuses.get(status, 0) + 1

    senders = [threading.Thread(target=send_large) for _ in range(SENDERS)]
    for sender in senders:
        sender.start()
    with httpx.Client(timeout=60, headers=JSON) as client:
        while any(sender.is_alive() for sender in senders):
            row = {"event": "small", "distinctId": str(len(waits))}
            small = msgspec.json.encode({"token": TOKEN, "events": [row]})
            began = time.perf_counter()
            client.post(url, content=small)
            waits.append((time.perf_counter() - began) * 1000)
    return statuses, waits


if __name__ == "__main__":
    run()
