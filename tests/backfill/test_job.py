"""A backfill from file to report, against a real HTTP server that speaks the API and fails as it is told."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from counterfoil.backfill import BackfillError, Report, Stopped, backfill, dry_run, job, job_status, load_mapping
from counterfoil.backfill.rejected import RejectedFile, Rejection
from counterfoil.contract.answers import batch_answer
from counterfoil.contract.limits import Limits
from counterfoil.contract.requests import read_batch
from counterfoil.contract.rows import RowRules, judge_batch
from counterfoil.files import RealFiles
from tests.e2e.server import until
from tests.http_receiver import Received, Receiver, Reply, http_receiver

TOKEN = "t-1"
LIMITS = Limits()
RULES = RowRules(limits=LIMITS, age_ms_max=None, ahead_ms_max=300_000)
NOW_MS = 1_767_225_600_000


class Api:
    """A server of the API: judges by the contract, keeps what it accepted, and fails where `trouble` says so."""

    def __init__(self, receiver: Receiver) -> None:
        self.to = f"{receiver.url}/api/v1"
        self.limits: dict[str, Any] = {"rows_max": 100}
        self.kept: dict[str, bytes] = {}
        self.batches: list[list[str]] = []
        self.trouble: Callable[[int, list[str]], Reply | set[int] | None] = lambda number, ids: None
        receiver.answer = self._answer

    def _answer(self, request: Received) -> Reply:
        if request.path.endswith("/limits"):
            return Reply(200, {}, json.dumps(self.limits).encode())
        batch = read_batch(request.body, LIMITS)
        judged = judge_batch(batch, RULES, NOW_MS)
        self.batches.append(judged.distinct_ids)
        trouble = self.trouble(len(self.batches), judged.distinct_ids)
        if isinstance(trouble, Reply):
            if trouble.cut:
                self._keep(judged.distinct_ids, judged.bodies, set())
            return trouble
        failed = trouble or set()
        self._keep(judged.distinct_ids, judged.bodies, failed)
        answer = batch_answer(judged.row_count, judged.faults, [judged.indexes[place] for place in failed])
        return Reply(answer.status, {}, answer.body)

    def _keep(self, ids: list[str], bodies: list[bytes], failed: set[int]) -> None:
        self.kept.update(pair for place, pair in enumerate(zip(ids, bodies, strict=True)) if place not in failed)


@pytest.fixture
def api() -> Iterator[Api]:
    """A server that takes everything until told otherwise."""
    with http_receiver() as receiver:
        yield Api(receiver)


def write_rows(path: Path, count: int, broken: tuple[int, ...] = ()) -> Path:
    """A file of rows, one a line; the broken lines (from 1) lack their event."""
    rows = [
        {"event": "e", "distinctId": f"d{n}"} if n not in broken else {"distinctId": f"d{n}"}
        for n in range(1, count + 1)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(path: Path, api: Api, **options: Any) -> Report:
    """A backfill of one file to its end."""
    return asyncio.run(backfill([str(path)], to=api.to, token=TOKEN, **{"batch_rows": 10, **options}))


def rejected(path: Path) -> list[dict[str, Any]]:
    """What stands in the rejected file of an input."""
    return [json.loads(line) for line in Path(f"{path}.rejected.ndjson").read_text().splitlines()]


def test_every_record_is_accepted_or_rejected_with_its_place(tmp_path: Path, api: Api) -> None:
    """read = accepted + rejected + skipped; what is rejected stands in the file with line, code, message, original."""
    path = write_rows(tmp_path / "a.ndjson", 95, broken=(3, 40, 95))
    path.write_text(path.read_text() + "no json\n")
    report = run(path, api)
    assert (report.read, report.accepted, report.rejected, report.skipped) == (96, 92, 4, 0)
    assert report.balances
    assert report.is_complete
    assert len(api.kept) == 92
    found = rejected(path)
    assert [one["line"] for one in found] == [3, 40, 95, 96]
    assert found[0]["code"] == "invalid_event"
    assert found[0]["original"] == {"distinctId": "d3"}
    assert "event" in found[0]["message"]
    assert (found[3]["message"], found[3]["original"]) == ("not JSON", "no json")


def test_a_mended_rejected_file_is_backfilled_like_the_first(tmp_path: Path, api: Api) -> None:
    """Fix the originals in their place and send that file."""
    path = write_rows(tmp_path / "a.ndjson", 5, broken=(2,))
    run(path, api)
    mended = tmp_path / "a.ndjson.rejected.ndjson"
    mended.write_text(mended.read_text().replace('{"distinctId"', '{"event":"e","distinctId"'))
    report = run(mended, api)
    assert (report.accepted, report.rejected) == (1, 0)
    assert set(api.kept) == {f"d{n}" for n in range(1, 6)}


def test_a_mended_record_of_a_table_is_mapped_like_the_first(tmp_path: Path, api: Api) -> None:
    """Columns that were mapped by their names are mapped again, whatever the rejected file is called by then."""
    path = tmp_path / "a.csv"
    path.write_text("event,distinct_id,time,amount\ne,d1,2025-12-31,5\ne,d2,soon,6\n")
    assert run(path, api).rejected == 1
    (found,) = rejected(path)
    assert found["original"] == {"columns": {"event": "e", "distinct_id": "d2", "time": "soon", "amount": "6"}}
    found["original"]["columns"]["time"] = "still"
    mended = tmp_path / "mended.ndjson"
    mended.write_text(json.dumps(found) + '\n{"event":"e","distinctId":"d3","columns":1}\n')
    assert run(mended, api).rejected == 1
    again = Path(f"{mended}.rejected.ndjson")
    again.write_text(again.read_text().replace("still", "2025-12-30"))
    assert run(again, api).accepted == 1
    first, second = (json.loads(api.kept[name]) for name in ("d1", "d2"))
    assert first["time"] - second["time"] == 86_400_000
    assert second["eventProperties"] == {"amount": "6"}


def test_a_mended_rejected_file_is_never_cut(tmp_path: Path, api: Api) -> None:
    """The same command once more, or another job of the same file, leaves alone what somebody mends."""
    path = write_rows(tmp_path / "a.ndjson", 5, broken=(2,))
    run(path, api)
    mended = tmp_path / "a.ndjson.rejected.ndjson"
    mended.write_text(mended.read_text().replace('{"distinctId"', '{"event":"e","distinctId"'))
    text = mended.read_text()
    assert run(path, api).skipped == 5
    with pytest.raises(BackfillError, match="holds what an earlier job rejected"):
        run(path, api, job=tmp_path / "other.backfill")
    assert mended.read_text() == text


def test_a_rejected_file_that_changed_under_a_job_is_not_cut(tmp_path: Path, api: Api) -> None:
    """Mended too early it is refused; moved away it begins again, and is kept by every later run."""
    path = write_rows(tmp_path / "a.ndjson", 60, broken=(2, 32, 52))

    def stop_at(count: int) -> None:
        stop = len(api.batches) + count
        api.trouble = lambda number, ids: Reply(401) if number == stop else None
        with pytest.raises(Stopped):
            run(path, api, in_flight_max=1)

    stop_at(3)
    file = Path(f"{path}.rejected.ndjson")
    file.write_text(file.read_text().replace("{", '{"mended":1,', 1))
    with pytest.raises(BackfillError, match="changed since the job wrote it"):
        run(path, api)
    file.rename(tmp_path / "away.ndjson")
    stop_at(3)
    assert [one["line"] for one in rejected(path)] == [32]
    api.trouble = lambda number, ids: None
    assert run(path, api).is_complete
    assert [one["line"] for one in rejected(path)] == [32, 52]


def test_two_jobs_do_not_write_one_rejected_file(tmp_path: Path, api: Api) -> None:
    """The second says so and stops; what the first has rejected stays whole."""
    path = write_rows(tmp_path / "a.ndjson", 40, broken=(3, 33))
    second: list[BackfillError] = []

    def other_job(number: int, ids: list[str]) -> None:
        if number == 4:
            until(lambda: Path(f"{path}.rejected.ndjson").exists(), "the first job rejected a record")
            with pytest.raises(BackfillError) as caught:
                run(path, api, job=tmp_path / "second.backfill")
            second.append(caught.value)

    api.trouble = other_job
    assert run(path, api, in_flight_max=1).balances
    assert "holds what an earlier job rejected" in str(second[0])
    assert [one["line"] for one in rejected(path)] == [3, 33]


def test_two_jobs_that_began_together_do_not_write_one_rejected_file(tmp_path: Path) -> None:
    """Whoever comes second is told while the first still writes, and after it."""
    first, second, third = (
        RejectedFile(tmp_path / "a.rejected.ndjson", RealFiles(), 0, is_new=True, are_columns=False) for _ in range(3)
    )
    refused = Rejection(1, b"{}", "invalid_event", "no")
    first.write([[refused]])
    with pytest.raises(BackfillError, match="another job writes there"):
        second.write([[refused]])
    first.close()
    with pytest.raises(BackfillError, match="changed"):
        third.write([[refused]])
    assert len((tmp_path / "a.rejected.ndjson").read_text().splitlines()) == 1
    second.close()
    third.close()


@pytest.mark.parametrize("name", ["a.ndjson.backfill", "a.ndjson.rejected.ndjson"])
def test_a_full_disk_stops_the_job_at_once(
    tmp_path: Path, api: Api, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What can't be confirmed is not sent on and on; with room again the same command goes on."""
    monkeypatch.setattr(job, "FLUSH_SECONDS", 0.01)
    path = write_rows(tmp_path / "a.ndjson", 3000, broken=tuple(range(5, 3000, 10)))
    disk = FullDisk(name)

    def fill_at_the_fifth(number: int, ids: list[str]) -> None:
        if number == 5:
            disk.fill()
        if number > 20:
            assert disk.has_refused.wait(120)

    api.trouble = fill_at_the_fifth
    with pytest.raises(Stopped, match=rf"{name}: can't be written \(No space left on device\)") as caught:
        run(path, api, files=disk)
    report = caught.value.report
    assert report.read == report.accepted + report.rejected + report.unanswered
    assert len(api.batches) < 100
    api.trouble = lambda number, ids: None
    report = run(path, api)
    assert report.balances
    assert report.is_complete
    assert sorted(one["line"] for one in rejected(path)) == list(range(5, 3000, 10))


class FullDisk(RealFiles):
    """From `fill` on a file takes half of what is appended, and then no more."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self._is_full = False
        self.has_refused = threading.Event()

    def fill(self) -> None:
        self._is_full = True

    def append(self, descriptor: int, data: bytes) -> None:
        if self._is_full and Path(f"/proc/self/fd/{descriptor}").readlink().name == self._name:
            super().append(descriptor, data[: len(data) // 2])
            self.has_refused.set()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().append(descriptor, data)


def test_what_stands_before_the_damage_of_a_file_is_sent(tmp_path: Path, api: Api) -> None:
    """An array that is cut: every whole element is in, and the books balance when the job stops."""
    path = tmp_path / "a.json"
    rows = ",".join(json.dumps({"event": "e", "distinctId": f"d{n}"}) for n in range(1, 26))
    path.write_text(f'[{rows},{{"event"')
    with pytest.raises(Stopped, match="ends early or is damaged after its element 25") as caught:
        run(path, api)
    report = caught.value.report
    assert (report.read, report.accepted, report.unanswered, report.is_complete) == (25, 25, 0, False)
    assert len(api.kept) == 25


def test_counts_are_told_while_the_server_answers_nothing(tmp_path: Path, api: Api) -> None:
    """A person sees retries, and not a bar that stands still."""
    told: list[int] = []
    api.trouble = lambda number, ids: Reply(401 if any(told) else 503)
    with pytest.raises(Stopped, match="token"):
        run(write_rows(tmp_path / "a.ndjson", 10), api, observe=lambda tally: told.append(tally.retries))


def test_a_pattern_leaves_out_what_the_job_writes(tmp_path: Path, api: Api) -> None:
    """A pattern that fits the rejected files, too, names the same job when it goes on."""
    for name in ("a.ndjson", "b.ndjson"):
        write_rows(tmp_path / name, 5, broken=(2,))

    def once() -> Report:
        return asyncio.run(backfill([str(tmp_path / "*.ndjson")], to=api.to, token=TOKEN))

    assert once().rejected == 2
    assert (tmp_path / "b.ndjson.rejected.ndjson").exists()
    assert once().skipped == 10
    with pytest.raises(BackfillError, match="named twice"):
        asyncio.run(backfill([str(tmp_path / "a.ndjson")] * 2, to=api.to, token=TOKEN))


def test_rows_that_failed_in_the_queue_are_sent_again_alone(tmp_path: Path, api: Api) -> None:
    """`queue_failed` is answered with the same row, the same distinctId, and no other."""
    api.trouble = lambda number, ids: {1, 3} if number == 1 else None
    report = run(write_rows(tmp_path / "a.ndjson", 10), api)
    assert api.batches == [[f"d{n}" for n in range(1, 11)], ["d2", "d4"]]
    assert (report.accepted, report.repeated) == (10, 2)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(500, {}, b'{"success":false,"error":"later","retryable":true}'),
        Reply(503),
        Reply(429, {"retry-after": "0.1"}),
        Reply(cut=True),
    ],
)
def test_a_request_that_failed_is_sent_again(tmp_path: Path, api: Api, reply: Reply) -> None:
    """Also where the server took it and the answer was lost: the rows are repeats to it."""
    api.trouble = lambda number, ids: reply if number in (1, 2) else None
    report = run(write_rows(tmp_path / "a.ndjson", 30), api)
    assert (report.accepted, report.rejected, len(api.kept)) == (30, 0, 30)
    assert report.retries == 2


@pytest.mark.parametrize("status", [400, 413])
def test_a_request_that_is_refused_goes_in_halves(tmp_path: Path, api: Api, status: int) -> None:
    """A row that is refused alone is rejected with what the server said; the others are in."""
    refusal = Reply(status, {}, b'{"success":false,"error":"no"}')
    api.trouble = lambda number, ids: refusal if "d4" in ids else None
    path = write_rows(tmp_path / "a.ndjson", 10)
    report = run(path, api)
    assert (report.accepted, report.rejected) == (9, 1)
    assert [(one["line"], one["message"]) for one in rejected(path)] == [(4, "no")]


@pytest.mark.parametrize(("status", "part"), [(401, "token"), (404, "/api/v1"), (415, "this API"), (302, "this API")])
def test_what_somebody_must_mend_stops_at_once(tmp_path: Path, api: Api, status: int, part: str) -> None:
    """One line says what to look at, and the journal stays as it is."""
    api.trouble = lambda number, ids: Reply(status) if number == 3 else None
    path = write_rows(tmp_path / "a.ndjson", 100)
    with pytest.raises(Stopped, match=part) as caught:
        run(path, api, in_flight_max=1)
    assert not caught.value.report.is_complete
    api.trouble = lambda number, ids: None
    report = run(path, api)
    assert report.skipped == 20
    assert report.balances
    assert set(api.kept) == {f"d{n}" for n in range(1, 101)}


@pytest.mark.parametrize("body", [b"<html>The plain HTTP request was sent to HTTPS port</html>", b""])
def test_a_400_that_is_none_of_the_api_stops_at_once(tmp_path: Path, api: Api, body: bytes) -> None:
    """It says nothing about rows: none is rejected for it."""
    api.trouble = lambda number, ids: Reply(400, {}, body)
    path = write_rows(tmp_path / "a.ndjson", 10)
    with pytest.raises(Stopped, match="answered 400: not an answer of this API"):
        run(path, api)
    assert len(api.batches) == 1
    assert not Path(f"{path}.rejected.ndjson").exists()


def test_a_token_that_no_server_takes_is_told_at_once(tmp_path: Path, api: Api) -> None:
    """Each request would be a 400, and each row be rejected for it."""
    path = write_rows(tmp_path / "a.ndjson", 10)
    with pytest.raises(BackfillError, match="longer than the 250 characters"):
        asyncio.run(backfill([str(path)], to=api.to, token="t" * 251))
    assert api.batches == []


def test_limits_that_are_none_are_passed_over(tmp_path: Path, api: Api) -> None:
    """The contract's hold where a server says nonsense."""
    api.limits = {"rows_max": "many", "body_bytes_max": -1}
    assert run(write_rows(tmp_path / "a.ndjson", 10), api).accepted == 10


def test_credentials_of_the_address_are_neither_shown_nor_kept(tmp_path: Path, api: Api) -> None:
    """They are used, and nothing more."""
    path = write_rows(tmp_path / "a.ndjson", 10)
    to = api.to.replace("http://", "http://me:secret@")
    api.trouble = lambda number, ids: Reply(404)
    with pytest.raises(Stopped) as caught:
        asyncio.run(backfill([str(path)], to=to, token=TOKEN))
    assert "secret" not in str(caught.value)
    assert "secret" not in Path(f"{path}.backfill").read_text()


@pytest.mark.parametrize("pause", ["nan", "soon", "Fri, 31 Dec 2027 23:59:59 GMT"])
def test_a_retry_after_that_is_no_number_is_passed_over(tmp_path: Path, api: Api, pause: str) -> None:
    """The backoff of our own is waited for instead."""
    api.trouble = lambda number, ids: Reply(503, {"retry-after": pause}) if number == 1 else None
    assert run(write_rows(tmp_path / "a.ndjson", 10), api).retries == 1


def test_an_answer_without_a_length_that_was_cut_is_asked_for_again(tmp_path: Path, api: Api) -> None:
    """It is no sign of another API: the rows are sent again."""
    cut = Reply(200, {}, b'{"success":tr', has_length=False)
    api.trouble = lambda number, ids: cut if number == 1 else None
    report = run(write_rows(tmp_path / "a.ndjson", 10), api)
    assert (report.accepted, report.retries) == (10, 1)


def test_patience_ends(tmp_path: Path, api: Api) -> None:
    """A server that never comes back ends the run with how to go on."""
    api.trouble = lambda number, ids: Reply(503)
    with pytest.raises(Stopped, match="go on later with the same command"):
        run(write_rows(tmp_path / "a.ndjson", 10), api, patience_seconds=0.2)


def test_a_job_that_is_done_sends_nothing_again(tmp_path: Path, api: Api) -> None:
    """The same command once more reads, finds all confirmed, and sends nothing."""
    path = write_rows(tmp_path / "a.ndjson", 25, broken=(5,))
    run(path, api)
    batches = len(api.batches)
    report = run(path, api)
    assert (report.read, report.skipped, report.accepted) == (25, 25, 0)
    assert len(api.batches) == batches
    assert len(rejected(path)) == 1


def kill_at(pid: int, batch_number: int) -> Callable[[int, list[str]], None]:
    """Trouble that kills a process when so many batches have come in."""
    return lambda number, ids: os.kill(pid, signal.SIGKILL) if number == batch_number else None


@pytest.mark.parametrize("kills", range(3))
def test_a_killed_job_goes_on_where_it_was(tmp_path: Path, api: Api, kills: int) -> None:
    """SIGKILL at whatever moment: at the end every row is in, and every rejection stands once."""
    path = write_rows(tmp_path / "a.ndjson", 600, broken=(7, 300, 599))
    script = (
        "import asyncio, sys; from counterfoil.backfill import backfill\n"
        "asyncio.run(backfill([sys.argv[1]], to=sys.argv[2], token='t-1', batch_rows=10))\n"
    )
    command = [sys.executable, "-c", script, str(path), api.to]
    for kill in range(1, 4):
        process = subprocess.Popen(command)
        api.trouble = kill_at(process.pid, kill * 12 + kills * 3)
        process.wait()
    api.trouble = lambda number, ids: None
    report = run(path, api)
    assert report.balances
    assert report.is_complete
    assert set(api.kept) == {f"d{n}" for n in range(1, 601)} - {"d7", "d300", "d599"}
    assert sorted(one["line"] for one in rejected(path)) == [7, 300, 599]


def test_memory_is_bounded(tmp_path: Path, api: Api) -> None:
    """Whatever the file's size: what is in flight is held, what is answered is not, also before it is confirmed."""
    path = tmp_path / "a.ndjson"
    filling = "x" * 100_000
    with path.open("w") as file:
        for number in range(600):
            file.write(f'{{"event":"e","distinctId":"d{number}","eventProperties":{{"a":"{filling}"}}}}\n')
    script = (
        "import asyncio, sys, tracemalloc; from counterfoil.backfill import backfill, job\n"
        "job.FLUSH_SECONDS = 3600\n"
        "tracemalloc.start()\n"
        "asyncio.run(backfill([sys.argv[1]], to=sys.argv[2], token='t-1', in_flight_max=2))\n"
        "print(tracemalloc.get_traced_memory()[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path), api.to], capture_output=True, check=True)
    assert len(api.kept) == 600
    # Three batches of 4 MiB, two of them joined, and a chunk in two forms.
    assert int(done.stdout) < 40 * 1024 * 1024


def test_a_changed_file_is_refused(tmp_path: Path, api: Api) -> None:
    """Records could not be told from those that are confirmed."""
    path = write_rows(tmp_path / "a.ndjson", 20)
    run(path, api)
    path.write_text(path.read_text().replace("d7", "x7"))
    with pytest.raises(BackfillError, match="changed since the job began"):
        run(path, api)
    assert run(path, api, job=tmp_path / "second.backfill").accepted == 20


def test_another_target_or_mapping_needs_another_job(tmp_path: Path, api: Api) -> None:
    """A journal tells what it is the journal of."""
    path = write_rows(tmp_path / "a.ndjson", 5)
    run(path, api)
    with pytest.raises(BackfillError, match="sends to"):
        asyncio.run(backfill([str(path)], to="http://127.0.0.1:1/api/v1", token=TOKEN))
    mapping = tmp_path / "m.toml"
    mapping.write_text('[fields]\nevent = "event"\n')
    with pytest.raises(BackfillError, match="another mapping"):
        run(path, api, mapping=load_mapping(mapping))


def test_a_torn_last_line_of_the_journal_is_cut(tmp_path: Path, api: Api) -> None:
    """What a crash left half written confirms nothing."""
    path = write_rows(tmp_path / "a.ndjson", 20)
    run(path, api)
    journal = Path(f"{path}.backfill")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:2]) + lines[2][:20])
    report = run(path, api)
    assert (report.skipped, report.accepted) == (10, 10)
    assert report.is_complete


def test_status_tells_how_far_a_job_is(tmp_path: Path, api: Api) -> None:
    """Rows read, accepted, rejected, about how many remain, and whether it is done."""
    path = write_rows(tmp_path / "a.ndjson", 100, broken=(2,))
    api.trouble = lambda number, ids: Reply(401) if number == 6 else None
    with pytest.raises(Stopped):
        run(path, api, in_flight_max=1)
    status = job_status(Path(f"{path}.backfill"))
    assert (status.read, status.accepted, status.rejected, status.is_complete) == (50, 49, 1, False)
    assert status.remaining is not None
    assert abs(status.remaining - 50) <= 2
    api.trouble = lambda number, ids: None
    run(path, api)
    status = job_status(Path(f"{path}.backfill"))
    assert (status.read, status.remaining, status.is_complete) == (100, 0, True)
    with pytest.raises(BackfillError, match="no such job"):
        job_status(tmp_path / "none.backfill")


def test_a_batch_keeps_to_the_servers_limit(tmp_path: Path, api: Api) -> None:
    """GET /limits says 100 rows: more are never sent in one request."""
    run(write_rows(tmp_path / "a.ndjson", 450), api, batch_rows=1000)
    assert max(len(batch) for batch in api.batches) == 100


def test_what_is_too_long_is_one_kind_of_error(tmp_path: Path) -> None:
    """A dry run shows a line for it, not one for each length."""
    path = tmp_path / "a.ndjson"
    path.write_text("".join(json.dumps({"event": "e" * n, "distinctId": f"d{n}"}) + "\n" for n in range(1001, 1011)))
    (fault,) = dry_run([str(path)], now_ms=NOW_MS).faults
    assert fault.count == 10
    assert fault.message == "row.event: expected a string of 1 to 1000 characters, found another number of characters"


def test_a_dry_run_sends_nothing_and_groups_what_is_wrong(tmp_path: Path, api: Api) -> None:
    """Each kind of error has a count and its first lines; old rows are told with the setting that allows them."""
    old = {"event": "e", "distinctId": "old", "time": NOW_MS - 30 * 86_400_000}
    path = write_rows(tmp_path / "a.ndjson", 50, broken=tuple(range(11, 16)))
    path.write_text(path.read_text() + json.dumps(old) + "\nno json\n")
    found = dry_run([str(path)], records_max=None, now_ms=NOW_MS)
    assert (found.read, found.good, found.is_whole) == (52, 46, True)
    assert [(fault.count, fault.places[0]) for fault in found.faults] == [(5, (str(path), 11)), (1, (str(path), 52))]
    assert found.faults[0].message.startswith("row.event")
    assert found.rows[0] == {"event": "e", "distinctId": "d1"}
    reminder = found.window_reminder()
    assert reminder is not None
    assert reminder.startswith("1 rows are older than the 7 days")
    assert api.batches == []
    assert not dry_run([str(path)], records_max=10).is_whole
