"""Who is taken when more comes than can be: what a worker would get to late is refused early, to be sent again.

Two queues can grow in a worker without anyone seeing it. Both are kept short here, because a sender that has waited for
seconds gives up and sends again, and then the worker works for nobody:

    the event loop's    requests that have arrived and wait to be judged. A turn of the loop takes all that were ready
                        when it began; what comes up later than LATE_SECONDS into one, with LATE_REQUESTS judged before
                        it, is refused. To refuse costs a tenth of judging, so the turn ends soon, and no request waits
                        for more than about two of them
    large requests'     they are judged one at a time (decision 0505); who has waited TURN_SECONDS for it is refused

A turn that is late with few requests behind it says that the machine is slow, not that too many came: it refuses none.

Rejected: a bound on the requests in flight (a hundred small ones are nothing, ten large ones are much: what counts is
time); to look at the time since a request began (a slow sender's own time is in it).
"""

from __future__ import annotations

import asyncio
from time import monotonic
from types import TracebackType

LATE_SECONDS = 0.05
LATE_REQUESTS = 16
TURN_SECONDS = 0.5


class TooBusy(Exception):
    """The worker has more to do than it can in good time."""


class Admission:
    """Says before each request is judged whether it comes up in time. On the event loop only."""

    def __init__(self) -> None:
        self._turn_began = 0.0
        self._judged_count = 0

    def admit(self) -> None:
        """Count a request that is about to be judged. Raises TooBusy."""
        if not self._judged_count:
            self._turn_began = monotonic()
            # It runs in the next turn, before what becomes ready during this one.
            asyncio.get_running_loop().call_soon(self._end_turn)
        elif self._judged_count >= LATE_REQUESTS and monotonic() - self._turn_began > LATE_SECONDS:
            raise TooBusy
        self._judged_count += 1

    def _end_turn(self) -> None:
        self._judged_count = 0


class Turn:
    """A lock that is had one after the other, in order, and not waited for longer than TURN_SECONDS."""

    def __init__(self, seconds_max: float = TURN_SECONDS) -> None:
        self._lock = asyncio.Lock()
        self._seconds_max = seconds_max

    async def __aenter__(self) -> None:
        """Raises TooBusy."""
        try:
            async with asyncio.timeout(self._seconds_max):
                await self._lock.acquire()
        except TimeoutError:
            raise TooBusy from None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()
