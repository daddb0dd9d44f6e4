"""The worst requests that the limits allow: CPU seconds and memory of reading, judging and answering each.

    python -m bench.worst [name …]

Each is 16 MiB of what is dearest to look at, in a process of its own, tuned as a gateway worker is. The aim is 1 s and
150 MiB a worker; the gateway judges large requests in pieces, so that others are answered in between. Memory is the
process's peak, the body itself included.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from counterfoil.contract.answers import batch_answer
from counterfoil.contract.limits import MIB, Limits
from counterfoil.contract.rejections import RequestRejected
from counterfoil.contract.requests import read_batch
from counterfoil.contract.rows import RowRules, judge_batch
from counterfoil.gateway.tuning import tune_process

LIMITS = Limits()
RULES = RowRules(LIMITS, None, 300_000)
NOW_MS = 1_780_000_000_000
HEAD, TAIL = b'{"token":"t","events":[', b"]}"
ROOM = LIMITS.body_bytes_max - len(HEAD) - len(TAIL)

Fill = Callable[[int], bytes]
"""A JSON value of at most so many bytes."""


def body(rows: Iterable[bytes]) -> bytes:
    return HEAD + b",".join(rows) + TAIL


def as_many(row: bytes) -> bytes:
    """As many rows as the body's limit allows."""
    return HEAD + ((row + b",") * (ROOM // (len(row) + 1)))[:-1] + TAIL


def filled(fill: Fill, row_count: int, field: str = "eventProperties") -> bytes:
    """So many rows that are as large as the body's limit, and a row's, allow, with a field that fills them."""
    head = b'{"event":"a","distinctId":"1","%b":' % field.encode()
    row_bytes = min(ROOM // row_count - 1, LIMITS.row_bytes_max)
    row = head + fill(row_bytes - len(head) - 1) + b"}"
    return body([row] * min(row_count, ROOM // (len(row) + 1)))


def array_of(entry: bytes) -> Fill:
    return lambda size: b'{"a":[' + ((entry + b",") * ((size - 8) // (len(entry) + 1)))[:-1] + b"]}"


def object_of(member: bytes) -> Fill:
    return lambda size: b'{"a":{' + b",".join(b'"%06x":%b' % (key, member) for key in range((size - 9) // 11)) + b"}}"


def text_of(part: bytes) -> Fill:
    return lambda size: b'{"a":"' + part * ((size - 8) // len(part)) + b'"}'


def levels(size: int) -> bytes:
    return b"[" * (size // 2) + b"]" * (size // 2)


ARRAYS = b"[" + b",".join([b"[]"] * 250) + b"]"
POISON = b'"\\ud800",'

CASES: dict[str, Callable[[], bytes]] = {
    "empty objects as rows": lambda: as_many(b"{}"),
    "empty arrays as rows": lambda: as_many(b"[]"),
    "10,000 rows of empty arrays": lambda: filled(array_of(b"[]"), 10_000),
    "16 rows of empty arrays": lambda: filled(array_of(b"[]"), 16),
    "16 rows of arrays of arrays": lambda: filled(array_of(ARRAYS), 16),
    "16 rows of unknown arrays": lambda: filled(array_of(b"[]"), 16, "x"),
    "10,000 rows of objects": lambda: filled(object_of(b"{}"), 10_000),
    "16 rows of objects": lambda: filled(object_of(b"{}"), 16),
    "10,000 deep rows": lambda: body([levels(1600)] * 10_000),
    "10,000 rows of 60 levels": lambda: filled(array_of(levels(112)), 10_000),
    "one deep row": lambda: body([levels(ROOM)]),
    "one huge row of arrays": lambda: body([array_of(b"[]")(ROOM)]),
    "one huge row of escapes": lambda: body([text_of(b"\\n")(ROOM)]),
    "16 rows of escapes": lambda: filled(text_of(b"\\n"), 16),
    "10,000 rows of \\u escapes": lambda: filled(text_of(b"\\u00e9"), 10_000),
    "one huge row of lone surrogates": lambda: body([text_of(b"\\ud800")(ROOM)]),
    "10,000 rows of lone surrogates": lambda: filled(text_of(b"\\ud800"), 10_000),
    "the same of arrays": lambda: filled(array_of(b"[]"), 10_000).replace(b'"a":[', b'"a":[' + POISON),
    "10,000 rows of bytes not UTF-8": lambda: filled(text_of(b"\xff"), 10_000),
    "10,000 rows of floats": lambda: filled(array_of(b"9e15"), 10_000),
    "10,000 rows of long floats": lambda: filled(array_of(b"1.7976931348623157081452742373170435e308"), 10_000),
    "16 rows of integers of 4,300 digits": lambda: filled(array_of(b"9" * 4300), 16),
    "10,000 rows of one fault": lambda: body([b'{"event":1,"distinctId":2,"userId":3,"email":4}'] * 10_000),
}


def measure(name: str) -> str:
    sent = CASES[name]()
    tune_process()
    begun = time.process_time()
    try:
        judged = judge_batch(read_batch(sent, LIMITS), RULES, NOW_MS)
        status = batch_answer(judged.row_count, judged.faults).status
    except RequestRejected as rejected:
        status = rejected.status
    seconds = time.process_time() - begun
    return f"{name:<36} {len(sent) / MIB:5.1f} MiB  {status}  {seconds:5.2f} s  {_peak_mib():4.0f} MiB"


def _peak_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def run() -> None:
    """Print the figures of every case."""
    for name in CASES:
        subprocess.run([sys.executable, "-m", "bench.worst", name], check=True)


if __name__ == "__main__":
    if not sys.argv[1:]:
        run()
    for case in sys.argv[1:]:
        print(measure(case), flush=True)
