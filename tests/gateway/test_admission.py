"""Who comes up too late is refused early, and nobody else is."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from counterfoil.gateway import admission, deadlines
from counterfoil.gateway.admission import LATE_REQUESTS, LATE_SECONDS, Admission, TooBusy, Turn
from tests.gateway.server import RunningGateway, batch, read_answer, request_head, until


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that `admission` sees, as the one entry of a list."""
    now = [100.0]
    monkeypatch.setattr(admission, "monotonic", lambda: now[0])
    return now


def test_what_comes_up_late_in_a_turn_is_refused(clock: list[float]) -> None:
    """After LATE_SECONDS of a turn with many requests the rest of it is refused, and the next turn begins anew."""

    async def turns() -> None:
        gate = Admission()
        for _ in range(LATE_REQUESTS):
            gate.admit()
        clock[0] += LATE_SECONDS + 0.01
        for _ in range(3):
            with pytest.raises(TooBusy):
                gate.admit()
        await asyncio.sleep(0)
        gate.admit()

    asyncio.run(turns())


def test_a_slow_machine_refuses_nobody(clock: list[float]) -> None:
    """A turn that took long with few requests in it refuses none."""

    async def turn() -> None:
        gate = Admission()
        for _ in range(LATE_REQUESTS):
            gate.admit()
            clock[0] += LATE_SECONDS

    asyncio.run(turn())


def test_many_in_a_turn_that_is_short_are_all_taken(clock: list[float]) -> None:
    """However many requests are ready at once, they are taken while there is time."""

    async def turn() -> None:
        gate = Admission()
        for _ in range(100 * LATE_REQUESTS):
            gate.admit()

    asyncio.run(turn())


def test_a_turn_is_not_waited_for_without_end() -> None:
    """Who waits too long for the turn is refused, who waits less has it, in order; a refusal takes nobody's turn."""

    async def wait() -> list[str]:
        turn = Turn(seconds_max=0)
        had: list[str] = []

        async def take(name: str, release: asyncio.Event) -> None:
            async with turn:
                had.append(name)
                await release.wait()

        first, second = asyncio.Event(), asyncio.Event()
        holder = asyncio.create_task(take("first", first))
        await asyncio.sleep(0)
        with pytest.raises(TooBusy):
            await take("late", second)
        turn._seconds_max = 3600
        waiter = asyncio.create_task(take("second", second))
        await asyncio.sleep(0)
        first.set()
        second.set()
        await asyncio.gather(holder, waiter)
        return had

    assert asyncio.run(wait()) == ["first", "second"]


def test_a_request_that_is_refused_so_is_to_be_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is late answers 500 with Retry-After, and takes the same request later."""

    def refuse(_: Admission) -> None:
        raise TooBusy

    body = batch({"event": "Purchase", "distinctId": "a"})
    with RunningGateway(tmp_path) as gateway:
        with monkeypatch.context() as late:
            late.setattr(Admission, "admit", refuse)
            answer = gateway.post("/batch", body)
        assert (answer.status_code, answer.headers["retry-after"], answer.json()["retryable"]) == (500, "1", True)
        assert gateway.post("/batch", body).status_code == 200
        assert gateway.distinct_ids() == ["a"]


def test_stalled_requests_make_room_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With as many requests arriving as may be, the one that stalls longest is given up, and a new one is taken."""
    monkeypatch.setattr(deadlines, "ARRIVING_MAX", 2)
    body = batch({"event": "Purchase", "distinctId": "a"})
    with RunningGateway(tmp_path) as gateway, gateway.connect() as first, gateway.connect() as second:
        for stalled in (first, second):
            stalled.sendall(request_head("/api/v1/batch", "content-length: 1000") + b" " * 900)
            held = 900 * (1 if stalled is first else 2)
            until(lambda held=held: gateway.held_bytes() == held, "held what was sent")  # type: ignore[misc]
        assert gateway.post("/batch", body).status_code == 200
        assert read_answer(first).status == 500
        second.sendall(b" " * 100)
        assert read_answer(second).status == 400
