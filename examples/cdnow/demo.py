"""Send the CDNOW purchases through the official SDK, then compare what the table holds with what the file holds.

Starts a server of its own in a temporary directory and leaves nothing behind. Exit status 0 only when every purchase
was delivered once and the sums by month are those of the file.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from ours_privacy import OursPrivacy

PURCHASES = Path(__file__).with_name("cdnow.csv.gz")
BATCH_ROWS = 500
BROKEN_EVERY = 10
"""Every tenth batch carries broken rows, one of each kind."""
REPEATED_EVERY = 20
"""Every twentieth batch is sent twice, as by a sender that never saw the answer."""
WAIT_SECONDS = 60
COUNTERFOIL = Path(sys.executable).with_name("counterfoil")

BY_MONTH = """
SELECT to_char(time, '%Y-%m') AS month,
       count(*) AS purchases,
       sum(CAST(regexp_match(event_properties, 'dollar_value.:([0-9.]+)')[1] AS DECIMAL(12, 2))) AS dollars
FROM events GROUP BY 1 ORDER BY 1
"""

Month = tuple[str, int, Decimal]


def main() -> int:
    """Run the demo; the exit status."""
    with tempfile.TemporaryDirectory(prefix="counterfoil-demo-") as directory:
        server = Server(Path(directory))
        with server.running():
            told = send(server)
            print(f"Sent {told['rows']:,} rows in {told['requests']:,} requests in {told['seconds']:.1f} s.")
            print(f"Answered: {told['accepted']:,} rows accepted, {told['failed']:,} failed.")
            for message, count in sorted(told["messages"].items()):
                print(f"  {count:>5,} x {message}")
            print(
                f"Everything was delivered {server.wait_until_delivered(told['accepted']):.1f} s after the last answer."
            )
            print("\n$ counterfoil audit")
            print(server.run("audit"))
            print(f'$ counterfoil query "{BY_MONTH.strip()}"')
            print(server.run("query", BY_MONTH))
            in_table = [
                (month, purchases, Decimal(str(dollars)))
                for month, purchases, dollars in json.loads(server.run("query", BY_MONTH, "--json"))["rows"]
            ]
    return compare(in_table, months_of(read_purchases()), told)


def compare(in_table: list[Month], in_file: list[Month], told: dict[str, Any]) -> int:
    """Say whether the table holds what the file holds; the exit status."""
    if in_table != in_file:
        for month in sorted(set(in_table) ^ set(in_file)):
            print(f"  differs: {month}  (in the {'table' if month in in_table else 'file'})")
        print("The table does NOT hold what the file holds.")
        return 1
    if told["failed"] != told["broken"]:
        print(f"{told['failed']} rows failed, but {told['broken']} were broken.")
        return 1
    purchases, dollars = sum(month[1] for month in in_file), sum(month[2] for month in in_file)
    print(f"The table holds what the file holds: {purchases:,} purchases, {dollars:,} dollars, month by month.")
    return 0


def read_purchases() -> Iterator[dict[str, str]]:
    """The rows of the file, in its order."""
    with gzip.open(PURCHASES, "rt", newline="") as file:
        yield from csv.DictReader(file)


def months_of(purchases: Iterator[dict[str, str]]) -> list[Month]:
    """Number of purchases and sum of dollars by month, computed from the file alone."""
    counts: Counter[str] = Counter()
    sums: dict[str, Decimal] = {}
    for purchase in purchases:
        month = purchase["date"][:7]
        counts[month] += 1
        sums[month] = sums.get(month, Decimal(0)) + Decimal(purchase["dollar_value"])
    return [(month, counts[month], sums[month]) for month in sorted(sums)]


def events_of(purchases: Iterator[dict[str, str]]) -> Iterator[dict[str, Any]]:
    """Each purchase as an event of the SDK."""
    occurrences: Counter[tuple[str, ...]] = Counter()
    for purchase in purchases:
        columns = tuple(purchase.values())
        # 255 purchases are written like an earlier one: only their number among these tells them apart.
        occurrences[columns] += 1
        identity = ",".join((*columns, str(occurrences[columns])))
        midnight = datetime.fromisoformat(purchase["date"]).replace(tzinfo=UTC)
        yield {
            "event": "Purchase",
            "distinct_id": hashlib.sha256(identity.encode()).hexdigest()[:32],
            "external_id": purchase["customer_id"],
            "time": midnight.timestamp() * 1000,
            "event_properties": {
                "number_of_cds": int(purchase["number_of_cds"]),
                "dollar_value": float(purchase["dollar_value"]),
            },
        }


def broken_events(number: int) -> list[dict[str, Any]]:
    """Rows that can't be accepted, as a careless sender would make them."""
    good = {"event": "Purchase", "distinct_id": f"broken-{number}"}
    return [
        {**good, "event": " "},
        {**good, "distinct_id": 12345},
        {**good, "event_properties": ["not", "an", "object"]},
        {**good, "time": "1997-01-01"},
    ]


def batches() -> Iterator[tuple[list[dict[str, Any]], int]]:
    """What is sent, request by request: events, and how many of them are broken."""
    batch: list[dict[str, Any]] = []
    number = 0
    for event in [*events_of(read_purchases()), None]:
        if event is not None:
            batch.append(event)
        if len(batch) == BATCH_ROWS or (event is None and batch):
            broken = broken_events(number) if number % BROKEN_EVERY == 3 else []
            # In the middle of the good ones, so that it shows that none of them suffers.
            request = [*batch[:250], *broken, *batch[250:]]
            yield request, len(broken)
            if number % REPEATED_EVERY == 7:
                yield request, len(broken)
            batch = []
            number += 1


def send(server: Server) -> dict[str, Any]:
    """Send everything; what was answered."""
    told: dict[str, Any] = {"requests": 0, "rows": 0, "broken": 0, "accepted": 0, "failed": 0, "messages": Counter()}
    began = time.monotonic()
    with OursPrivacy(base_url=server.url) as client:
        for events, broken in batches():
            answer = client.batch.create(token=server.token, events=events)  # type: ignore[arg-type]
            told["requests"] += 1
            told["rows"] += len(events)
            told["broken"] += broken
            told["accepted"] += answer.accepted
            told["failed"] += answer.failed
            for result in answer.results:
                if result.success is False:
                    # `events[253].time: expected …` of the 253rd row and of any other are one kind.
                    told["messages"]["events[…]" + result.message.partition("]")[2]] += 1
    told["seconds"] = time.monotonic() - began
    return told


class Server:
    """`counterfoil serve` in a directory of its own, on ports that are free."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.token = secrets.token_urlsafe(24)
        self.port, self.console_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}/api/v1"
        (directory / "counterfoil.toml").write_text(
            f"""
[gateway]
port = {self.port}
workers = 1

[console]
port = {self.console_port}

[[sources]]
name = "cdnow"
token_sha256 = ["{hashlib.sha256(self.token.encode()).hexdigest()}"]
max_age_days = 0  # The purchases are decades old.
"""
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        """The server runs inside this block."""
        with (self.directory / "server.log").open("wb") as log:
            process = subprocess.Popen([COUNTERFOIL, "serve"], cwd=self.directory, stdout=log, stderr=log)
        try:
            self._wait(lambda: self._console("/readyz") is not None, "the server is ready", process)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()

    def wait_until_delivered(self, accepted: int) -> float:
        """Return when all accepted rows are settled and what was new of them is delivered; the seconds it took."""

        def is_done() -> bool:
            status = json.loads(self._console("/api/status") or "{}")
            settled = sum(source["accepted"] for source in status.get("sources", ()))
            return settled == accepted and all(place["pending"] == 0 for place in status["destinations"])

        began = time.monotonic()
        self._wait(is_done, "everything is delivered")
        return time.monotonic() - began

    def run(self, *arguments: str) -> str:
        """What a command prints."""
        done = subprocess.run(
            [COUNTERFOIL, *arguments], cwd=self.directory, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise SystemExit(f"counterfoil {arguments[0]}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def _console(self, path: str) -> bytes | None:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.console_port}{path}") as answer:
            found: bytes = answer.read()
            return found
        return None

    def _wait(self, is_done: Any, what: str, process: subprocess.Popen[bytes] | None = None) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not is_done():
            if time.monotonic() > deadline or (process is not None and process.poll() is not None):
                raise SystemExit(f"not within {WAIT_SECONDS} s: {what}\n{(self.directory / 'server.log').read_text()}")
            time.sleep(0.05)


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        port: int = tried.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())
