"""`counterfoil backfill` at a terminal."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.server import clean_environment, command
from tests.http_receiver import Receiver, Reply, http_receiver


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A server that answers 404 to a question for its limits, and otherwise what a test says."""
    with http_receiver() as one:
        yield one


def at_a_terminal(directory: Path, *arguments: str) -> tuple[subprocess.Popen[bytes], int]:
    """A backfill whose standard error is a terminal, and that terminal's other side."""
    ours, theirs = os.openpty()
    (directory / "token").write_text("t")
    process = subprocess.Popen(
        command("backfill", *arguments, "--token-file", "token"),
        cwd=directory, stdout=subprocess.PIPE, stderr=theirs, env=clean_environment() | {"TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    return process, ours


def read_all(terminal: int) -> str:
    """What was written until the process ended."""
    read = b""
    try:
        while chunk := os.read(terminal, 65_536):
            read += chunk
    except OSError:
        # The last writer is gone.
        pass
    os.close(terminal)
    return read.decode()


def test_a_bar_is_shown_for_a_file_whose_name_tells_no_format(tmp_path: Path, receiver: Receiver) -> None:
    """The bar asks for the same files, by the same --format, as the job."""
    receiver.answer = lambda request: (
        Reply(200, {}, b'{"success":true,"accepted":1,"failed":0,"results":[{"index":0,"success":true}]}')
        if request.method == "POST"
        else Reply(404)
    )
    (tmp_path / "dump").write_text("event,distinctId\ne,d1\n")
    process, terminal = at_a_terminal(tmp_path, "dump", "--format", "csv", "--to", receiver.url)
    shown = read_all(terminal)
    out, _ = process.communicate()
    assert process.returncode == 0, shown
    assert "1 accepted" in shown
    assert b"read 1 = accepted 1 + rejected 0 + skipped 0" in out


def test_an_interrupt_says_how_to_go_on(tmp_path: Path, receiver: Receiver) -> None:
    """One line and the status of an interrupt, with nothing of the rows in it."""
    receiver.answer = lambda _: Reply(503, {"retry-after": "60"})
    (tmp_path / "a.ndjson").write_text('{"event":"e","distinctId":"canary"}\n')
    process, terminal = at_a_terminal(tmp_path, "a.ndjson", "--to", receiver.url)
    shown = b""
    while b"1 retries" not in shown:
        shown += os.read(terminal, 65_536)
    process.send_signal(signal.SIGINT)
    rest = read_all(terminal)
    process.communicate()
    assert process.returncode == 130
    assert "interrupted; the same command goes on" in rest
    assert "canary" not in shown.decode() + rest
