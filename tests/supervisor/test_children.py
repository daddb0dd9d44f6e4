from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from counterfoil.children import Backoff, Child, ChildState
from counterfoil.lifeline import Ready, Refused

QUICK = Backoff(first_seconds=0.01, last_seconds=0.04, settled_seconds=60)
WAIT_SECONDS = 120

OBEDIENT = """
    import threading
    from counterfoil.lifeline import Lifeline
    line = Lifeline.of_stdin()
    settings = line.settings()
    stop = threading.Event()
    line.watch(stop.set)
    line.ready()
    stop.wait()
"""


def make_child(
    program: str, settings: bytes = b"{}", on_change: Callable[[], None] = lambda: None, *, backoff: Backoff = QUICK
) -> Child:
    command = (sys.executable, "-c", textwrap.dedent(program))
    return Child("tried", command, settings, environment=os.environ, backoff=backoff, on_change=on_change)


async def until(child: Child, holds: Callable[[Child], bool], changed: asyncio.Event) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not holds(child):
            changed.clear()
            await changed.wait()


def run(scenario: Callable[[], object]) -> None:
    asyncio.run(scenario())  # type: ignore[arg-type]


def test_child_is_told_its_settings_and_tells_that_it_is_ready(tmp_path: Path) -> None:
    """A child finds its settings on its lifeline, however long they are, and its word arrives."""
    written = tmp_path / "settings"
    settings = json.dumps({"text": "x" * 300_000}).encode()

    async def scenario() -> None:
        program = OBEDIENT.replace("line.ready()", f"open({str(written)!r}, 'wb').write(settings); line.ready()")
        child = make_child(program, settings)
        child.start()
        assert await asyncio.wait_for(child.first_word, WAIT_SECONDS) == Ready()
        assert child.status.state is ChildState.READY
        child.stop()
        assert await child.ended(WAIT_SECONDS)

    run(scenario)
    assert written.read_bytes() == settings


def test_child_that_dies_is_started_again() -> None:
    """A child that is killed is started again, and its status tells how the life before ended (C1)."""

    async def scenario() -> None:
        changed = asyncio.Event()
        child = make_child(OBEDIENT, on_change=changed.set)
        child.start()
        await until(child, lambda c: c.status.state is ChildState.READY, changed)
        first = child.status.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(child, lambda c: c.status.start_count == 2 and c.status.state is ChildState.READY, changed)
        assert child.status.pid != first
        assert child.status.last_end == "SIGKILL"
        child.stop()
        assert await child.ended(WAIT_SECONDS)

    run(scenario)


def test_child_that_always_dies_is_started_without_end() -> None:
    """A child that can't live is tried again and again, with waits in between (C1)."""

    async def scenario() -> None:
        changed = asyncio.Event()
        child = make_child("raise SystemExit(3)", on_change=changed.set)
        child.start()
        await until(child, lambda c: c.status.start_count >= 5, changed)
        child.stop()
        assert await child.ended(WAIT_SECONDS)
        assert child.status.last_end == "exit 3"

    run(scenario)


def test_program_that_is_not_there_is_tried_again() -> None:
    """A program that can't be started at all doesn't end the watching."""

    async def scenario() -> None:
        changed = asyncio.Event()
        child = Child("x", ["/not/there"], b"", environment={}, backoff=QUICK, on_change=changed.set)
        child.start()
        await until(child, lambda c: c.status.last_end == "not started: FileNotFoundError", changed)
        child.stop()
        assert await child.ended(WAIT_SECONDS)

    run(scenario)


def test_waits_double_up_to_the_longest() -> None:
    """The wait before a start doubles from one short life to the next, up to its bound."""
    backoff = Backoff(first_seconds=0.5, last_seconds=3.0)
    assert [backoff.after(n) for n in (1, 2, 3, 4, 5_000)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_stopping_twice_or_before_the_start_is_harmless() -> None:
    """A child that was asked to stop is not started any more, however often it was asked (C2)."""

    async def scenario() -> None:
        child = make_child(OBEDIENT)
        child.stop()
        child.stop()
        child.start()
        assert await child.ended(0)
        assert child.status.start_count == 0

    run(scenario)


def test_stop_while_waiting_ends_the_wait() -> None:
    """A child that waits for its next start can be stopped at once."""

    async def scenario() -> None:
        changed = asyncio.Event()
        patient = Backoff(first_seconds=3600, last_seconds=3600)
        child = make_child("raise SystemExit(1)", on_change=changed.set, backoff=patient)
        child.start()
        await until(child, lambda c: c.status.state is ChildState.WAITING, changed)
        child.stop()
        assert await child.ended(WAIT_SECONDS)
        assert child.status.state is ChildState.STOPPED

    run(scenario)


def test_child_that_does_not_stop_is_killed() -> None:
    """A child that doesn't end within its time is killed, and that is told."""
    deaf = """
        import signal, time
        from counterfoil.lifeline import Lifeline
        line = Lifeline.of_stdin()
        line.settings()
        line.ready()
        time.sleep(3600)
    """

    async def scenario() -> None:
        child = make_child(deaf)
        child.start()
        await asyncio.wait_for(child.first_word, WAIT_SECONDS)
        child.stop()
        assert not await child.ended(0.05)
        assert child.status.last_end == "SIGKILL"

    run(scenario)


def test_child_tells_why_it_refuses() -> None:
    """The reason for which a child can't start reaches whoever started it."""
    refusing = """
        from counterfoil.lifeline import Lifeline
        line = Lifeline.of_stdin()
        line.settings()
        line.refuse("no such key file")
        raise SystemExit(1)
    """

    async def scenario() -> None:
        child = make_child(refusing)
        child.start()
        assert await asyncio.wait_for(child.first_word, WAIT_SECONDS) == Refused("no such key file")
        child.stop()
        assert await child.ended(WAIT_SECONDS)

    run(scenario)


def test_conditions_of_a_child_are_those_of_its_life_now() -> None:
    """What a child says of its parts is known as long as it lives, and forgotten with it."""
    failing = """
        import os, threading
        from counterfoil.lifeline import Lifeline
        line = Lifeline.of_stdin()
        line.settings()
        line.condition("lake", "delivering")
        line.condition("lake", "down")
        line.ready()
        line.watch(lambda: os._exit(0), lambda news: os._exit(1))
        threading.Event().wait()
    """

    async def scenario() -> None:
        changed = asyncio.Event()
        seen: list[tuple[int, ChildState, dict[str, str]]] = []

        def note() -> None:
            seen.append((child.status.start_count, child.status.state, child.status.conditions))
            changed.set()

        child = make_child(failing, on_change=note)
        child.start()
        await until(child, lambda c: c.status.state is ChildState.READY, changed)
        assert child.status.conditions == {"lake": "down"}
        assert (1, ChildState.STARTING, {"lake": "delivering"}) in seen
        child.tell(b"end now")
        await until(child, lambda c: c.status.start_count == 2, changed)
        assert next(conditions for start_count, _, conditions in seen if start_count == 2) == {}
        child.stop()
        await child.ended(WAIT_SECONDS)

    run(scenario)


def test_child_that_talks_nonsense_is_watched_all_the_same() -> None:
    """Whatever a child writes to its line, it is started again when it dies (C3)."""
    babbling = """
        import os
        os.write(0, b"nonsense\\n" + b"x" * 200_000)
        raise SystemExit(1)
    """

    async def scenario() -> None:
        changed = asyncio.Event()
        child = make_child(babbling, on_change=changed.set)
        child.start()
        await until(child, lambda c: c.status.start_count >= 2, changed)
        child.stop()
        assert await child.ended(WAIT_SECONDS)

    run(scenario)


def test_news_reach_this_life_and_the_next(tmp_path: Path) -> None:
    """A line told to a child arrives, and the newest one is told again to its next life."""
    heard = tmp_path / "heard"
    program = f"""
        import os, threading
        from counterfoil.lifeline import Lifeline

        def hear(news):
            with open({str(heard)!r}, "ab") as file:
                file.write(news + b"\\n")
            os.kill(os.getpid(), 9)

        line = Lifeline.of_stdin()
        line.settings()
        line.watch(lambda: os._exit(0), hear)
        line.ready()
        threading.Event().wait()
    """

    async def scenario() -> None:
        changed = asyncio.Event()
        child = make_child(program, on_change=changed.set)
        child.start()
        await until(child, lambda c: c.status.state is ChildState.READY, changed)
        child.tell(b"sources have changed")
        await until(child, lambda c: c.status.start_count >= 3, changed)
        child.stop()
        await child.ended(WAIT_SECONDS)

    run(scenario)
    assert heard.read_bytes().splitlines()[:2] == [b"sources have changed"] * 2


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_supervisor_leaves_no_orphan(how: signal.Signals) -> None:
    """When the process that started a child dies, even by SIGKILL, the child ends by itself (C4)."""
    keeper = f"""
        import asyncio, os, sys
        from counterfoil.children import Child

        async def keep():
            child = Child("x", [sys.executable, "-c", {textwrap.dedent(OBEDIENT)!r}], b"{{}}", environment=os.environ)
            child.start()
            await child.first_word
            print(child.status.pid, flush=True)
            await asyncio.sleep(3600)

        asyncio.run(keep())
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(keeper)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        child_pid = next(int(line) for line in lines if line.strip().isdigit())
        watched = os.pidfd_open(child_pid)
        process.send_signal(how)
        wait_for_end(watched)


def test_a_stuck_child_without_a_supervisor_ends_itself() -> None:
    """A process that ignores the end of its lifeline is ended from within."""
    stuck = """
        import time
        from counterfoil.lifeline import Lifeline
        line = Lifeline.of_stdin()
        line.settings()
        line.watch(lambda: None, grace_seconds=0.05)
        line.ready()
        time.sleep(3600)
    """

    async def scenario() -> None:
        child = make_child(stuck)
        child.start()
        await asyncio.wait_for(child.first_word, WAIT_SECONDS)
        child.stop()
        assert await child.ended(WAIT_SECONDS)
        assert child.status.last_end == "exit 70"

    run(scenario)


def wait_for_end(pidfd: int) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(WAIT_SECONDS * 1000), "the process still runs"
    os.close(pidfd)
