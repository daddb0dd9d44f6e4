"""The real test of a disk: rows are sent until somebody cuts the power, and judged when it is back.

    send_until_the_end    a server in `directory` takes rows; each acknowledged one is in the journal, by `record`
    judge_afterwards      the same server is started again and delivers; the checker judges it by the journal

The journal is what decides, so it must outlive the cut by itself: on another machine, at the other end of a terminal,
or at least on another disk. On the disk that is tested, a flush that was none could take rows and journal together, and
nothing would seem lost. A line that got lost makes fewer rows known as acknowledged, and never a fault out of none.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from counterfoil.selftest.content import Content
from counterfoil.selftest.journal import Journal, header_line, read_journal
from counterfoil.selftest.judging import Judgement, judge
from counterfoil.selftest.load import Load
from counterfoil.selftest.reading import read_delta
from counterfoil.selftest.sending import HttpSender
from counterfoil.selftest.server import ServerUnderTest

ROWS_PER_SECOND_MAX = 1_000.0
_POLL_SECONDS = 0.2


def send_until_the_end(directory: Path, record: Callable[[str], None], go_on: Callable[[], bool]) -> Journal:
    """Send rows until `go_on` says no, which it need not: the power is to be cut before.

    Raises ServerFailed; whatever `record` raises ends it, since an answer that is not written down proves nothing.
    """
    content = Content(f"canary{secrets.token_hex(6)}", time.time_ns() // 1_000_000)
    record(header_line(content))
    server = ServerUnderTest(directory)
    server.start()
    journal = Journal(record)
    load = Load(
        content,
        journal,
        lambda: HttpSender(server.url, server.token),
        clients=2,
        rows_per_second_max=ROWS_PER_SECOND_MAX,
    )
    load.start()
    try:
        while go_on() and load.is_working:
            time.sleep(_POLL_SECONDS)
    finally:
        # First: `stop` raises what has ended a client.
        server.kill_all()
        load.stop()
    return journal


def judge_afterwards(directory: Path, journal_bytes: bytes) -> Judgement:
    """Start the server that the cut has ended, let it deliver, and judge. Raises ServerFailed, JournalUnreadable."""
    content, journal = read_journal(journal_bytes)
    server = ServerUnderTest(directory)
    server.start()
    try:
        server.await_delivery()
        server.audit()
        return judge(content, journal, read_delta(server.lake))
    finally:
        server.kill_all()


def file_recorder(path: Path) -> Callable[[str], None]:
    """Appends lines to a new file and flushes each. Raises OSError: also when the file is there."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def record(line: str) -> None:
        data = line.encode()
        if os.write(file, data) != len(data):
            raise OSError(f"{path}: a line was written in part")
        os.fdatasync(file)

    return record
