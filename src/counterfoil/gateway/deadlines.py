"""Ends the waiting of requests that take too long to arrive, with one timer for all of them.

A timer a request would cost as much as half of its reading. Here a request costs an entry in a dictionary, and a sweep
four times a second looks at all of them: a millisecond for as many connections as a worker has. A task that waits is
cancelled, which is also what makes Granian give up the connection's body.
"""

from __future__ import annotations

import asyncio
from enum import Enum, auto

SWEEP_SECONDS = 0.25

ARRIVING_MAX = 1024
"""Requests that wait for their bodies at once, of which each costs some 10 KiB before anything of it is here; one
connection of HTTP/2 can begin many. For one more, the one that has waited longest is given up."""


class CutOff(Enum):
    """Why a request's waiting was ended."""

    TOO_SLOW = auto()
    STOPPING = auto()
    CROWDED_OUT = auto()


class Deadlines:
    """The tasks that wait for a request's body, and until when."""

    def __init__(self) -> None:
        self._until: dict[asyncio.Task[object], float] = {}
        self._cut: dict[asyncio.Task[object], CutOff] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, until: float) -> asyncio.Task[object]:
        """The task that calls waits from now on, until a time of its loop."""
        task = asyncio.current_task()
        assert task is not None
        if len(self._until) >= ARRIVING_MAX:
            self._cancel(next(iter(self._until)), CutOff.CROWDED_OUT)
        self._until[task] = until
        if self._timer is None:
            self._timer = task.get_loop().call_later(SWEEP_SECONDS, self._sweep)
        return task

    def end(self, task: asyncio.Task[object]) -> None:
        """It waits no longer."""
        self._until.pop(task, None)

    def cut(self, task: asyncio.Task[object]) -> CutOff | None:
        """Why a task was cancelled, when that was done here: then it goes on as if it was not."""
        why = self._cut.pop(task, None)
        if why is not None:
            task.uncancel()
        return why

    def cut_all(self) -> None:
        """End the waiting of every request."""
        for task in list(self._until):
            self._cancel(task, CutOff.STOPPING)

    def close(self) -> None:
        """Stop the timer; closing twice is harmless."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for task in [task for task, until in self._until.items() if until <= now]:
            self._cancel(task, CutOff.TOO_SLOW)
        self._timer = loop.call_later(SWEEP_SECONDS, self._sweep) if self._until else None

    def _cancel(self, task: asyncio.Task[object], why: CutOff) -> None:
        del self._until[task]
        self._cut[task] = why
        task.cancel()
