"""Logs hold nothing of a sender's data, and metrics of several processes add up."""

from __future__ import annotations

import ast
import io
import json
import logging
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from counterfoil.ledger import Books, DestinationCounts, GroupNumber, SourceCounts
from counterfoil.telemetry import logs
from counterfoil.telemetry.metrics import METRICS, metrics_page

SOURCE_ROOT = Path(__file__).parent.parent / "src" / "counterfoil"
SECRET = "jane@example.org"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """Where the logs of this process go, as JSON."""
    hooks = sys.excepthook, threading.excepthook
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    stream = io.StringIO()
    logs.configure_logs("test", level=logging.DEBUG, stream=stream)
    yield stream
    structlog.reset_defaults()
    sys.excepthook, threading.excepthook = hooks
    root.handlers, root.level = handlers, level
    logging.captureWarnings(False)


def events(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def fail_with(message: str) -> None:
    try:
        raise KeyError(message)
    except KeyError as error:
        raise ValueError(f"can't read {message}") from error


def test_an_event_is_one_line_of_json_with_its_fields(lines: io.StringIO) -> None:
    """A line names event, level, time in UTC, process, and the fields."""
    structlog.get_logger().warning("queue.tail_cut", segment=7, path=Path("a/b"), is_last=True)
    [event] = events(lines)
    assert list(event)[:5] == ["timestamp", "level", "event", "process", "pid"]
    assert event.pop("timestamp").endswith("Z")
    assert event.pop("pid") > 0
    assert event == {
        "event": "queue.tail_cut",
        "level": "warning",
        "process": "test",
        "segment": 7,
        "path": "a/b",
        "is_last": True,
    }


def test_on_a_terminal_it_is_readable() -> None:
    """Where a person reads along, a line is no JSON."""
    stream = io.StringIO()
    logs.configure_logs("test", stream=stream, is_terminal=True)
    try:
        structlog.get_logger().info("server.ready", port=8080)
    finally:
        structlog.reset_defaults()
        logging.captureWarnings(False)
        sys.excepthook, threading.excepthook = sys.__excepthook__, threading.__excepthook__
        logging.getLogger().handlers = []
    assert "server.ready" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"email": SECRET}, "<dict>"),
        ([SECRET], "<list>"),
        (SECRET.encode(), "<bytes>"),
        (ValueError(SECRET), "<ValueError>"),
        (SECRET * 100, "<text of 1600 characters>"),
    ],
)
def test_a_value_that_could_be_a_senders_is_named_by_its_type(lines: io.StringIO, value: object, shown: str) -> None:
    """P6: an object, bytes or a long text never reach a line, also when a call hands them in by mistake."""
    structlog.get_logger().error("test.event", found=value)
    assert events(lines)[0]["found"] == shown
    assert SECRET not in lines.getvalue()


def test_an_exception_is_named_by_type_and_place(lines: io.StringIO) -> None:
    """P6: the message of an exception, which may quote a value, is not in the line, and neither is its cause's."""
    try:
        fail_with(SECRET)
    except ValueError:
        structlog.get_logger().exception("test.failed")
    [event] = events(lines)
    assert event["error"] == "ValueError from KeyError"
    assert "test_telemetry.py" in event["at"]
    assert "fail_with" in event["at"]
    assert SECRET not in lines.getvalue()


def test_an_error_of_the_system_is_named(lines: io.StringIO) -> None:
    """An OSError shows what the system called it."""
    try:
        Path("/nowhere/at/all").read_bytes()
    except OSError as error:
        structlog.get_logger().error("test.failed", exc_info=error)
    assert events(lines)[0]["errno"] == "ENOENT"


def test_what_a_library_logs_is_named_without_its_text(lines: io.StringIO) -> None:
    """P6: libraries quote values; the line says which library, where and how grave."""
    library = logging.getLogger("some.library")
    library.warning("row %s", SECRET)
    library.error(f"can't parse {SECRET}")
    library.info("too light to be logged")
    first, second = events(lines)
    assert (first["event"], first["level"], first["library"]) == ("library.logged", "warning", "some.library")
    assert second["level"] == "error"
    assert SECRET not in lines.getvalue()


def test_a_crash_of_a_process_or_thread_is_a_line_without_its_message(lines: io.StringIO) -> None:
    """P6: the interpreter's own traceback, which prints messages, is replaced."""
    thread = threading.Thread(target=fail_with, args=(SECRET,), name="worker-1")
    thread.start()
    thread.join()
    try:
        fail_with(SECRET)
    except ValueError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    first, second = events(lines)
    assert (first["event"], first["thread"]) == ("thread.crashed", "worker-1")
    assert second["event"] == "process.crashed"
    assert SECRET not in lines.getvalue()


def log_calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call of a logger in the house, with its place."""
    for path in sorted(SOURCE_ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                is_logger = isinstance(node.func.value, ast.Name) and node.func.value.id == "log"
                if is_logger and node.func.attr in ("debug", "info", "warning", "error", "critical", "exception"):
                    yield f"{path.relative_to(SOURCE_ROOT)}:{node.lineno}", node


NEVER_LOGGED = re.compile(
    r"(^|_)(token|row|rows|body|value|distinct_id|user_id|external_id|email|properties|payload|data|key)$"
)
"""Names of fields that would hold what a sender sent; a count of rows is `row_count`."""


def test_a_line_that_can_not_be_written_is_dropped(lines: io.StringIO) -> None:
    """On a full disk, or when nobody reads any more, whoever logs goes on: the flush thread, for one."""

    class FullDisk(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(28, "No space left on device")

    logs.configure_logs("test", stream=FullDisk())
    structlog.get_logger().error("queue.flush_failed")
    closed = io.StringIO()
    logs.configure_logs("test", stream=closed)
    closed.close()
    structlog.get_logger().error("queue.flush_failed")


def test_log_calls_name_an_event_and_no_field_of_a_senders() -> None:
    """P6: each call has a constant event name like `queue.tail_cut`, and fields that are no sentences."""
    wrong = []
    for place, call in log_calls():
        event = call.args[0] if len(call.args) == 1 else None
        text = event.value if isinstance(event, ast.Constant) else None
        if not (isinstance(text, str) and re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", text)):
            wrong.append(f"{place}: no constant event name")
        for field in call.keywords:
            is_put_together = isinstance(field.value, ast.JoinedStr)
            if not field.arg or NEVER_LOGGED.search(field.arg) or is_put_together:
                wrong.append(f"{place}: field {field.arg}")
    assert wrong == []


COUNT = """
import sys
from pathlib import Path
from counterfoil.telemetry.metrics import GatewayMetrics, start_metrics
gateway = GatewayMetrics(start_metrics(Path(sys.argv[1]), sys.argv[2]))
gateway.requests_answered("/api/v1/batch", 200, 1)
gateway.requests_took("/api/v1/batch", [0, 1] + [0] * 13, 0.002, 100)
gateway.requests_answered("/jane@example.org", 404, 1)
gateway.rows_answered("website", 10, 1, 0)
"""


def count(directory: Path, process: str) -> None:
    subprocess.run([sys.executable, "-c", COUNT, str(directory), process], check=True)


def samples(page: bytes) -> dict[str, float]:
    lines = [line for line in page.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_metrics_of_several_processes_and_lives_add_up(tmp_path: Path) -> None:
    """A process that is started again goes on counting where it was, and the page shows the sum over all."""
    for process in ("gateway-1", "gateway-2", "gateway-1"):
        count(tmp_path, process)
    page = metrics_page(tmp_path)
    found = samples(page)
    assert found['counterfoil_requests_total{path="/api/v1/batch",status="200"}'] == 3
    assert found['counterfoil_rows_total{result="accepted",source="website"}'] == 30
    assert found['counterfoil_request_seconds_count{path="/api/v1/batch"}'] == 3
    assert found['counterfoil_request_seconds_bucket{le="0.001",path="/api/v1/batch"}'] == 0
    assert found['counterfoil_request_seconds_bucket{le="0.0025",path="/api/v1/batch"}'] == 3
    assert found['counterfoil_request_seconds_sum{path="/api/v1/batch"}'] == pytest.approx(0.006)
    assert found['counterfoil_body_bytes_total{path="/api/v1/batch"}'] == 300
    assert len(list(tmp_path.iterdir())) == 4


def test_a_path_that_is_not_the_apis_is_no_label(tmp_path: Path) -> None:
    """P6, and a bound on labels: what somebody asked for does not become a metric's name."""
    count(tmp_path, "gateway-1")
    page = metrics_page(tmp_path)
    assert SECRET.encode() not in page
    assert samples(page)['counterfoil_requests_total{path="other",status="404"}'] == 1


def test_a_damaged_metrics_file_is_begun_anew(tmp_path: Path) -> None:
    """What a kill left of a file keeps no process from starting."""
    count(tmp_path, "gateway-1")
    file = tmp_path / "counter_gateway-1.db"
    damaged = bytearray(file.read_bytes())
    damaged[8:12] = b"\xff\xff\xff\x7f"
    file.write_bytes(damaged)
    count(tmp_path, "gateway-1")
    assert samples(metrics_page(tmp_path))['counterfoil_rows_total{result="accepted",source="website"}'] == 10


def test_without_a_place_for_metrics_a_process_works_all_the_same(tmp_path: Path) -> None:
    """Nothing that matters hangs on telemetry."""
    (tmp_path / "metrics").touch()
    count(tmp_path / "metrics", "gateway-1")


def test_the_books_stand_on_the_page(tmp_path: Path) -> None:
    """What the ledger counts is shown as it stands there."""
    books = Books(
        sources=(SourceCounts("website", accepted=10, new=6, duplicate=3, conflict=1),),
        destinations=(DestinationCounts("lake", GroupNumber(0), GroupNumber(2), routed=6, delivered=3, dead=1),),
        damaged_frames=2,
        last_group=GroupNumber(4),
    )
    found = samples(metrics_page(tmp_path, books, {"pipeline": 3}, 5))
    assert found['counterfoil_settled_rows_total{source="website",verdict="duplicate"}'] == 3
    assert found['counterfoil_pending_rows{destination="lake"}'] == 2
    assert found['counterfoil_process_starts_total{process="pipeline"}'] == 3
    assert found["counterfoil_settled_groups_total"] == 4
    assert found["counterfoil_damaged_frames_total"] == 2
    assert found["counterfoil_quarantined_files"] == 5


def test_metrics_have_one_name_each_and_say_their_unit() -> None:
    """Counters end in _total, histograms in _seconds, and none is there twice."""
    names = [spec.name for spec in METRICS]
    assert len(set(names)) == len(names)
    ends = {"counter": "_total", "histogram": "_seconds"}
    assert all(spec.name.endswith(ends.get(spec.kind, "")) for spec in METRICS)
