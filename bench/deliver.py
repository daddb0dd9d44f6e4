"""How fast rows come into PostgreSQL and to a webhook, beside what their own clients do with the same rows.

Deliver reads settled groups from frames that lie ready (checksum, parsing) and hands them over as the pipeline does;
settle has run before the clock starts. No delivery waits for more rows, as in a backlog. By the wall clock, since most
of the work is the other side's; PostgreSQL flushes.

Floors, in turn with it in the same run:

- psycopg's `write_row` in one binary COPY and one commit: the same values in the same types, rows decoded before the
  clock starts, into a table without any index. Ours reads and decodes the frames, has the ledger's id beside the
  values, keeps the unique index and the one on `seq`, and moves the cursor in PostgreSQL and the ledger's copy of it:
  one transaction and one synced batch a delivery.
- httpx posting the same bytes, one request after the other, to the same receiver.

    python -m bench.deliver --rows 100000 --pairs 3
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import msgspec
import psycopg
import structlog
from psycopg.types.json import Json

from bench.delta import DIRECTORY, LEDGER, MadeFrames
from counterfoil.destinations.interface import DeliveredRow, Destination
from counterfoil.destinations.postgres import PostgresDestination
from counterfoil.destinations.rows import delivered_rows
from counterfoil.destinations.settings import DeliverySettings, PostgresSettings, WebhookSettings
from counterfoil.destinations.webhook import Posting, WebhookDestination, posted_row
from counterfoil.ledger import Ledger
from counterfoil.ledger.settings import LedgerSettings
from counterfoil.pipeline.deliver import Deliverer
from counterfoil.pipeline.settings import PipelineSettings
from counterfoil.pipeline.settle import Settler
from tests.postgres_server import postgres_server, why_not

POSTGRES_RATIO_MIN = 0.5
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLjPV"
COLUMNS = (
    "seq int8, source text, event text, distinct_id text, user_id text, external_id text, email text, time int8, "
    "received_at int8, event_properties json, user_properties json, default_properties json, identity_context json, "
    "extra json"
)
RECEIVER = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(204)
        self.end_headers()
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


def deliver_all(directory: Path, queue: MadeFrames, destination: Destination, settings: DeliverySettings) -> float:
    """Seconds for everything that was settled, from the first group to the last cursor."""
    ledger = Ledger.open(directory / "ledger", LedgerSettings(), LEDGER)
    ledger.register_destination(settings.name)
    settler = Settler(queue, ledger, PipelineSettings(), _clock_ms)
    while settler.step():
        pass
    deliverer = Deliverer(destination, ledger, queue, settings, clock_ms=_clock_ms)
    deliverer.open()
    begun = time.perf_counter()
    while ledger.cursor(settings.name) < ledger.last_group():
        deliverer.step()
    seconds = time.perf_counter() - begun
    destination.close()
    ledger.close()
    return seconds


def copy_all(dsn: str, rows: Sequence[DeliveredRow]) -> float:
    """Seconds for a binary COPY of all rows and its commit."""
    types = [column.split()[1] for column in COLUMNS.split(", ")]
    with psycopg.connect(dsn) as connection:
        connection.execute("DROP TABLE IF EXISTS floor")
        connection.execute(f"CREATE TABLE floor ({COLUMNS})".encode())
        connection.commit()
        begun = time.perf_counter()
        with connection.cursor() as cursor, cursor.copy("COPY floor FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(types)
            for row in rows:
                copy.write_row(
                    (
                        row.seq,
                        row.source,
                        row.event,
                        row.distinct_id,
                        row.user_id,
                        row.external_id,
                        row.email,
                        row.time_ms,
                        row.received_at_ms,
                        _json(row.event_properties),
                        _json(row.user_properties),
                        _json(row.default_properties),
                        _json(row.identity_context),
                        _json(row.extra),
                    )
                )
        connection.commit()
        return time.perf_counter() - begun


def _json(text: str | None) -> Json | None:
    return None if text is None else Json(text, dumps=str.encode)


def post_all(url: str, bodies: Sequence[bytes]) -> float:
    """Seconds for posting all bodies, one after the other."""
    with httpx.Client(trust_env=False) as client:
        begun = time.perf_counter()
        for body in bodies:
            client.post(url, content=body).raise_for_status()
        return time.perf_counter() - begun


def all_rows(queue: MadeFrames) -> list[DeliveredRow]:
    """The rows as destinations get them."""
    rows: list[DeliveredRow] = []
    for frame in queue.read(DIRECTORY, None, 2**60).frames:
        rows += delivered_rows(frame, range(frame.facts.row_count), 65_536 + len(rows))[0]
    return rows


def compared(
    what: str, floor: str, pairs: int, rows: int, ours: Callable[[int], float], theirs: Callable[[], float]
) -> None:
    """Print the ratio of each pair, and the best of both."""
    found = [(rows / ours(pair), rows / theirs()) for pair in range(pairs)]
    ratios = ", ".join(f"{mine / its:.2f}" for mine, its in found)
    best = max(mine for mine, _ in found), max(its for _, its in found)
    print(f"{what}: {best[0]:,.0f} rows/s; {floor}: {best[1]:,.0f} rows/s; ratio a pair {ratios}")


def run(rows: int = 100_000, pairs: int = 3) -> None:
    """Measure and print."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    queue = MadeFrames(rows)
    here = all_rows(queue)
    where = os.environ.get("COUNTERFOIL_BENCH_DIR")
    with tempfile.TemporaryDirectory(prefix="counterfoil-bench-", dir=where) as path:
        reason = why_not()
        if reason is None:
            _postgres(Path(path), queue, here, pairs)
        else:
            print(reason)
        _webhook(Path(path), queue, here, pairs)


def _postgres(directory: Path, queue: MadeFrames, rows: Sequence[DeliveredRow], pairs: int) -> None:
    with postgres_server(flushes=True) as server:

        def ours(pair: int) -> float:
            settings = PostgresSettings(name="postgres", dsn=server.dsn(), table=f"events_{pair}", batch_seconds=0)
            return deliver_all(directory / f"postgres-{pair}", queue, PostgresDestination(settings, LEDGER), settings)

        what = f"deliver to PostgreSQL (at least {POSTGRES_RATIO_MIN} of the floor)"
        compared(what, "its COPY alone", pairs, len(rows), ours, lambda: copy_all(server.dsn(), rows))


def _webhook(directory: Path, queue: MadeFrames, rows: Sequence[DeliveredRow], pairs: int) -> None:
    receiver = subprocess.Popen([sys.executable, "-c", RECEIVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert receiver.stdout is not None
        url = f"http://127.0.0.1:{int(receiver.stdout.readline())}/"
        settings = WebhookSettings(name="webhook", url=url, secret=SECRET, batch_seconds=0)
        step = settings.request_rows
        bodies = [
            msgspec.json.encode(
                Posting("rows", str(LEDGER), "webhook", [posted_row(row, LEDGER) for row in rows[at : at + step]])
            )
            for at in range(0, len(rows), step)
        ]

        def ours(pair: int) -> float:
            destination = WebhookDestination(settings, LEDGER, _clock_ms)
            return deliver_all(directory / f"webhook-{pair}", queue, destination, settings)

        compared("post to a webhook", "httpx posting the same", pairs, len(rows), ours, lambda: post_all(url, bodies))
    finally:
        receiver.kill()
        receiver.wait()


def _clock_ms() -> int:
    return time.time_ns() // 1_000_000


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--pairs", type=int, default=3)
    asked = parser.parse_args()
    run(asked.rows, asked.pairs)
