"""Rate limits: what a source sends over all workers stays within its limit, whoever of them is asked."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterfoil.gateway.rates import BURST_SECONDS, SLOT_COUNT, SharedRates
from counterfoil.sources import SourceSettings, token_sha256
from tests.gateway.server import SOURCE, TOKEN, RunningGateway, batch, row

SECOND_NS = 1_000_000_000
LIMITED = SourceSettings(name="website", token_sha256=(token_sha256(TOKEN),), rows_per_second_max=10)


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.ns = 1_000 * SECOND_NS

    def __call__(self) -> int:
        return self.ns


@settings(max_examples=50)
@given(
    st.integers(1, 1000),
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 500), st.integers(0, 2 * SECOND_NS)), max_size=60),
)
def test_over_any_time_a_source_sends_its_limit_a_burst_and_one_request_at_most(
    tmp_path_factory: pytest.TempPathFactory, limit: int, requests: list[tuple[int, int, int]]
) -> None:
    """Three workers, asked in any order at any times: every stretch of time keeps to the bound."""
    clock = Clock()
    path = tmp_path_factory.mktemp("rates") / "rates"
    workers = [SharedRates.open(path, clock_ns=clock) for _ in range(3)]
    admitted: list[tuple[int, int]] = []
    for worker, row_count, pause_ns in requests:
        clock.ns += pause_ns
        wait = workers[worker].take("website", row_count, limit)
        assert wait >= 0
        if wait == 0:
            admitted.append((clock.ns, row_count))
    for first in range(len(admitted)):
        rows = 0
        for at, row_count in admitted[first:]:
            seconds = (at - admitted[first][0]) / SECOND_NS
            # What was admitted before the last of the stretch is within the bound; the last may be any request.
            assert rows <= limit * (seconds + BURST_SECONDS) * (1 + 1e-6) + max(n for _, n in admitted[first:])
            rows += row_count


@given(st.integers(1, 1000), st.integers(1, 20_000))
@settings(max_examples=30)
def test_who_waits_as_long_as_told_is_admitted(
    tmp_path_factory: pytest.TempPathFactory, limit: int, row_count: int
) -> None:
    """The wait is neither shorter nor (but for a millisecond) longer than needed."""
    clock = Clock()
    rates = SharedRates.open(tmp_path_factory.mktemp("rates") / "rates", clock_ns=clock)
    while (wait := rates.take("website", row_count, limit)) == 0:
        pass
    before = clock.ns
    clock.ns = before + int((wait - 0.001) * SECOND_NS)
    if clock.ns > before:
        assert rates.take("website", 1, limit) > 0
    clock.ns = before + int(wait * SECOND_NS) + 1000
    assert rates.take("website", 1, limit) == 0


def test_sources_do_not_pay_for_each_other(tmp_path: Path) -> None:
    """Each has a time of its own, also when there are as many as slots, and more."""
    clock = Clock()
    rates = SharedRates.open(tmp_path / "rates", clock_ns=clock)
    names = [f"source-{index}" for index in range(SLOT_COUNT)]
    assert [name for name in names if rates.take(name, 100, 1)] == []
    assert [name for name in names if rates.take(name, 1, 1) == 0] == []
    assert rates.take("one-more", 1, 1) > 0
    clock.ns += 200 * SECOND_NS
    assert rates.take("one-more", 1, 1) == 0
    assert rates.take(names[0], 1, 1) == 0


def test_a_worker_that_starts_again_finds_what_was_counted(tmp_path: Path) -> None:
    """A death takes nothing with it."""
    clock = Clock()
    first = SharedRates.open(tmp_path / "rates", clock_ns=clock)
    assert first.take("website", 100, 10) == 0
    first.close()
    first.close()
    assert SharedRates.open(tmp_path / "rates", clock_ns=clock).take("website", 1, 10) == pytest.approx(9)


def test_a_boot_begins_anew(tmp_path: Path) -> None:
    """The clock of another boot means nothing in this one: nobody is kept out by it."""
    clock = Clock()
    before = SharedRates.open(tmp_path / "rates", clock_ns=clock, boot_id=b"a" * 16)
    assert before.take("website", 1000, 1) == 0
    clock.ns = 5 * SECOND_NS
    after = SharedRates.open(tmp_path / "rates", clock_ns=clock, boot_id=b"b" * 16)
    assert after.take("website", 1, 1) == 0


@pytest.mark.parametrize("content", [b"", b"short", bytes(range(1, 251)) * 400], ids=["empty", "short", "long"])
def test_a_file_that_is_something_else_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    """Whatever lies there keeps no worker from starting."""
    (tmp_path / "rates").write_bytes(content)
    rates = SharedRates.open(tmp_path / "rates")
    assert rates.take("website", 100, 1) == 0
    assert rates.take("website", 1, 1) > 0
    assert (tmp_path / "rates").stat().st_mode & 0o777 in (0o600, 0o644)


def test_without_a_file_a_worker_counts_alone(tmp_path: Path) -> None:
    """A limit holds in this process at least, and rows are taken."""
    rates = SharedRates.open(tmp_path / "nowhere" / "rates")
    assert rates.take("website", 100, 1) == 0
    assert rates.take("website", 1, 1) > 0


WORKER = """
import sys
from pathlib import Path
from counterfoil.gateway.rates import SharedRates
now = 0
rates = SharedRates.open(Path(sys.argv[1]), clock_ns=lambda: now)
print("ready", flush=True)
for line in sys.stdin:
    now = int(line)
    rows = 0
    while rates.take("website", 1, 100_000) == 0:
        rows += 1
    print(rows, flush=True)
"""


def test_processes_that_ask_at_once_keep_to_one_limit(tmp_path: Path) -> None:
    """Three, as fast as they can, while time stands still: together they get what a source may send, no row less."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path / "rates")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip

    def all_take(now_ns: int) -> int:
        """What they get together when it is this time."""
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(f"{now_ns}\n")
            process.stdin.flush()
        return sum(int(line) for line in said())

    def said() -> list[str]:
        return [process.stdout.readline() for process in processes if process.stdout is not None]

    assert said() == ["ready\n"] * 3
    assert all_take(1_000 * SECOND_NS) == 100_000 * BURST_SECONDS + 1
    assert all_take(1_001 * SECOND_NS) == 100_000
    for process in processes:
        process.communicate()


def test_over_its_limit_a_source_is_answered_429(tmp_path: Path) -> None:
    """With Retry-After in seconds; nothing of the request is kept, and other sources are served."""
    other = SourceSettings(name="other", token_sha256=(token_sha256("other"),))
    rates = SharedRates.open(tmp_path / "rates", clock_ns=Clock())
    with RunningGateway(tmp_path, sources=[LIMITED, other], rates=rates) as gateway:
        large = batch(*(row(str(index)) for index in range(100)))
        assert gateway.post("/batch", large).status_code == 200
        for path, body in (("/batch", batch(row("x"))), ("/track", {"token": TOKEN, **row("x")})):
            answer = gateway.post(path, body)
            assert answer.status_code == 429
            assert set(answer.json()) == {"success", "error"}
            assert int(answer.headers["retry-after"]) == 9
        assert gateway.post("/batch", batch(row("y"), token="other")).status_code == 200
        assert gateway.post("/batch", batch(row("y"), token="unknown")).status_code == 401
        assert len(gateway.distinct_ids()) == 101


def test_a_long_wait_is_told_as_a_minute(tmp_path: Path) -> None:
    """SDKs ignore a Retry-After of more."""
    source = LIMITED.model_copy(update={"rows_per_second_max": 1})
    with RunningGateway(tmp_path, sources=[source]) as gateway:
        assert gateway.post("/batch", batch(*(row(str(index)) for index in range(500)))).status_code == 200
        assert gateway.post("/batch", batch(row("x"))).headers["retry-after"] == "60"


def test_the_limit_is_over_all_workers(tmp_path: Path) -> None:
    """What one worker admitted, another counts."""
    clock = Clock()
    first, second = (
        RunningGateway(tmp_path, sources=[LIMITED], rates=SharedRates.open(tmp_path / "rates", clock_ns=clock))
        for _ in range(2)
    )
    with first, second:
        assert first.post("/batch", batch(*(row(str(index)) for index in range(100)))).status_code == 200
        assert second.post("/batch", batch(row("x"))).status_code == 429


def test_a_source_without_a_limit_is_not_counted(tmp_path: Path) -> None:
    """0 is without limit."""
    with RunningGateway(tmp_path, sources=[SOURCE]) as gateway:
        for _ in range(5):
            assert gateway.post("/batch", batch(*(row(str(index)) for index in range(1000)))).status_code == 200
