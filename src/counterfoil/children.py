"""Processes below this one: each is started, watched, and started again whenever it ends, without end.

A child is a program that finds its `Lifeline` as standard input. Invariants:
    C1. A child that ends without having been asked to is started again, after a wait that doubles from one short
        life to the next and begins anew after a long one.
    C2. A child that is asked to stop is never started again; asking twice, or before it was started, is harmless.
    C3. Whatever a child says or does not say can't stop the watching of another.
    C4. When this process dies, each child sees its lifeline end.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum

import msgspec
import structlog

from counterfoil.lifeline import Held, Message, Ready, Refused

log = structlog.get_logger()

_decoder = msgspec.json.Decoder(Message)

HELD = "held"
"""The condition of a process that is held: what to do."""


class ChildState(StrEnum):
    """Where a child is in its life."""

    STARTING = "starting"
    READY = "ready"
    HELD = "held"
    """It runs and does nothing until somebody acts; its condition `held` says what to do."""
    WAITING = "waiting"
    """It ended, and is started again after a while."""
    STOPPED = "stopped"


class ChildStatus(msgspec.Struct, frozen=True):
    """What an operator may know of a child."""

    name: str
    state: ChildState
    pid: int | None
    start_count: int
    since_ms: int
    """When it came into this state, ms since the Unix epoch."""
    last_end: str | None
    """How its life before this one ended: `exit 1`, `SIGKILL`."""
    conditions: dict[str, str] = {}
    """How its parts are, as it last said in this life."""


class Backoff(msgspec.Struct, frozen=True):
    """How long to wait before a child is started again."""

    first_seconds: float = 0.2
    last_seconds: float = 15.0
    settled_seconds: float = 30.0
    """A life at least this long was a good one: the waits begin anew."""

    def after(self, short_lives: int) -> float:
        """The wait after so many short lives in a row, from 1."""
        return min(self.last_seconds, self.first_seconds * 2.0 ** min(short_lives - 1, 32))


class Child:
    """A process that is kept running until it is asked to stop."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        settings: bytes,
        *,
        environment: Mapping[str, str],
        inherited: Sequence[int] = (),
        backoff: Backoff | None = None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self._command = tuple(command)
        self._settings = settings
        self._environment = dict(environment)
        self._inherited = tuple(inherited)
        self._backoff = backoff or Backoff()
        self._on_change = on_change
        self._news: bytes | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._line: asyncio.StreamWriter | None = None
        self._asked_to_stop = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None
        self._start_count = 0
        self._last_end: str | None = None
        self._conditions: dict[str, str] = {}
        self._state = ChildState.STOPPED
        self._since_ms = _now_ms()
        self.first_word: asyncio.Future[Ready | Refused | Held] = asyncio.get_running_loop().create_future()
        """The first time that any of its lives said that it is ready, refused, or held."""

    @property
    def status(self) -> ChildStatus:
        return ChildStatus(
            name=self.name,
            state=self._state,
            pid=self._process.pid if self._process and self._process.returncode is None else None,
            start_count=self._start_count,
            since_ms=self._since_ms,
            last_end=self._last_end,
            conditions=dict(self._conditions),
        )

    def start(self) -> None:
        """Start the process and keep it running."""
        if self._keeping is None and not self._asked_to_stop.is_set():
            self._keeping = asyncio.get_running_loop().create_task(self._keep(), name=f"keep {self.name}")

    def tell(self, news: bytes) -> None:
        """Send a line to the process, and the newest such line to each later life of it."""
        self._news = news
        if self._line is not None:
            self._line.write(news + b"\n")

    def stop(self) -> None:
        """Ask the process to stop; `ended` tells when it has."""
        self._asked_to_stop.set()
        if self._line is not None:
            self._line.close()

    async def ended(self, within_seconds: float) -> bool:
        """Return when the process has ended; True when it did so by itself within the time, else it is killed."""
        if self._keeping is None:
            return True
        done, _ = await asyncio.wait([self._keeping], timeout=max(0.0, within_seconds))
        if done:
            return True
        log.error("process.killed", child=self.name, waited_seconds=round(within_seconds, 1))
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self._keeping
        return False

    async def _keep(self) -> None:
        short_lives = 0
        while not self._asked_to_stop.is_set():
            began = time.monotonic()
            try:
                self._last_end = await self._live_once()
            except Exception as problem:
                # No descriptor or no memory left, say: that passes, and until then the others must be watched (C3).
                self._last_end = f"not started: {type(problem).__name__}"
            if self._asked_to_stop.is_set():
                break
            seconds = time.monotonic() - began
            short_lives = 1 if seconds >= self._backoff.settled_seconds else short_lives + 1
            wait = self._backoff.after(short_lives)
            log.error(
                "process.ended",
                child=self.name,
                end=self._last_end,
                lived_seconds=round(seconds, 1),
                start_again_in_seconds=wait,
            )
            self._change(ChildState.WAITING)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._asked_to_stop.wait(), wait)
        self._change(ChildState.STOPPED)

    async def _live_once(self) -> str:
        """Start the process, follow what it says, and tell how it ended."""
        ours, theirs = socket.socketpair()
        with theirs:
            reader, line = await asyncio.open_connection(sock=ours)
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command,
                    stdin=theirs.fileno(),
                    env=self._environment,
                    pass_fds=self._inherited,
                    # Ctrl-C goes to the whole foreground group: no part may stop before the gateway has answered.
                    start_new_session=True,
                )
                theirs.close()
                self._start_count += 1
                self._conditions.clear()
                self._change(ChildState.STARTING)
                log.info("process.started", child=self.name, child_pid=self._process.pid, start_count=self._start_count)
                self._take_up(line)
                _, status = await asyncio.gather(self._listen(reader), self._process.wait())
                return _end(status)
            finally:
                self._line = None
                line.close()

    def _take_up(self, line: asyncio.StreamWriter) -> None:
        """Say over a new life's line what it must know; close it at once when it is no longer wanted."""
        self._line = line
        line.write(self._settings + b"\n")
        if self._news is not None:
            line.write(self._news + b"\n")
        if self._asked_to_stop.is_set():
            line.close()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        # A child that is killed with unread settings resets the line; one may also say what nobody understands.
        with contextlib.suppress(OSError, ValueError, msgspec.MsgspecError):
            async for line in reader:
                self._hear(_decoder.decode(line))

    def _hear(self, message: Message) -> None:
        if isinstance(message, Ready):
            log.info("process.ready", child=self.name)
            self._change(ChildState.READY)
        elif isinstance(message, Refused):
            log.error("process.refused", child=self.name, reason=message.message)
        elif isinstance(message, Held):
            log.error("process.held", child=self.name, reason=message.message)
            self._conditions[HELD] = message.message
            self._change(ChildState.HELD)
        else:
            self._conditions[message.part] = message.state
            self._on_change()
            return
        if not self.first_word.done():
            self.first_word.set_result(message)

    def _change(self, state: ChildState) -> None:
        self._state = state
        self._since_ms = _now_ms()
        self._on_change()


def _end(status: int) -> str:
    if status >= 0:
        return f"exit {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
