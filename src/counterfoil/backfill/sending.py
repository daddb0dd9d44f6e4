"""Batches over HTTP, answered row by row (contract.md sections 2, 3 and 7).

    answer                     what is done
    200, 207                   `invalid_event` rows are rejected, `queue_failed` rows are sent again
    500 with results           the same
    500, 429, 408, 5xx, none   the same rows again, after Retry-After or a backoff; one batch fewer in flight at a time
    413, 400 of the API        in halves; a row that is refused alone is rejected
    401, 404, 405, 415, other  the job stops: trying again can't help until somebody acts

Rows that are sent again have the same distinctId, so what the server took without answering is a repeat to it.
"""

from __future__ import annotations

import asyncio
import math
import random

import msgspec
from pydantic import ValidationError

from counterfoil.backfill.batches import Rows
from counterfoil.backfill.connections import Connections, Response
from counterfoil.backfill.errors import BackfillError
from counterfoil.backfill.rejected import INVALID_EVENT, Rejection
from counterfoil.contract.limits import Limits

BACKOFF_SECONDS_MIN = 0.1
BACKOFF_SECONDS_MAX = 15.0
RETRY_AFTER_SECONDS_MAX = 60.0
_AGAIN = frozenset({408, 409, 425, 429})
_STOPPED = {
    400: "not an answer of this API: is it http:// where https:// is spoken?",
    401: "the token is unknown there: see --token-file",
    404: "there is no such path: --to is the base URL, with /api/v1 at its end",
    405: "that address takes no /batch: --to is the base URL, with /api/v1 at its end",
    415: "that address takes no JSON: is it a server of this API?",
}


class Sent(msgspec.Struct):
    """What became of a batch."""

    accepted: int = 0
    repeated: int = 0
    rejections: list[Rejection] = []


class _RowResult(msgspec.Struct, gc=False):
    index: int
    success: bool
    code: str | None = None
    message: str | None = None


class _Answer(msgspec.Struct):
    success: bool
    results: list[_RowResult] | None = None
    error: str | None = None


class Window:
    """How many batches may be in flight: one more after as many successes, half after trouble (AIMD)."""

    def __init__(self, size_max: int) -> None:
        self.size = 1.0 if size_max == 1 else 2.0
        self._size_max = size_max
        self._in_flight = 0
        self._changed = asyncio.Condition()

    async def enter(self) -> None:
        """Wait for a place."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._in_flight < int(self.size))
            self._in_flight += 1

    async def leave(self) -> None:
        """Give the place back."""
        async with self._changed:
            self._in_flight -= 1
            self._changed.notify_all()

    def went_well(self) -> None:
        self.size = min(self.size + 1 / self.size, float(self._size_max))

    def went_badly(self) -> None:
        self.size = max(self.size / 2, 1.0)


class BatchSender:
    """Sends batches to one server until each of their rows is accepted or rejected."""

    def __init__(self, connections: Connections, to: str, token: str, window: Window, patience_seconds: float) -> None:
        self._connections = connections
        self._to = to
        self._head = b'{"token":' + msgspec.json.encode(token) + b',"events":['
        self._window = window
        self._patience_seconds = patience_seconds
        self._in_trouble_since: float | None = None
        """When a request failed, and none has brought a row its answer since."""
        self._all_accepted = 0, b""
        """The last answer that was read and accepts every row, and how many: an equal one needs no reading again."""
        self.retries = 0

    async def send(self, rows: Rows) -> Sent:
        """Return when every row has its answer. Raises BackfillError when the job must stop."""
        sent = Sent(rejections=[])
        await self._window.enter()
        try:
            await self._send(rows, sent)
        finally:
            await self._window.leave()
        return sent

    async def _send(self, rows: Rows, sent: Sent) -> None:
        attempt = 0
        while rows:
            answer = await self._post(rows)
            if answer is not None and _is_too_much(answer):
                await self._send_smaller(rows, answer, sent)
                return
            failed = rows
            if answer is not None and answer.status in (200, 207, 500):
                failed = self._take(rows, answer, sent)
            elif answer is not None and not _may_help(answer.status):
                raise BackfillError(f"{self._to} answered {answer.status}: {_why(answer.status)}")
            if len(failed) < len(rows):
                attempt = 0
                self._in_trouble_since = None
            rows = failed
            if rows:
                sent.repeated += len(rows)
                attempt += 1
                await self._wait(attempt, answer)
            else:
                self._window.went_well()

    async def _send_smaller(self, rows: Rows, answer: Response, sent: Sent) -> None:
        if len(rows) == 1:
            sent.rejections.append(rows.rejection(0, _error_of(answer)))
            return
        middle = len(rows) // 2
        await self._send(rows.at(range(middle)), sent)
        await self._send(rows.at(range(middle, len(rows))), sent)

    async def _post(self, rows: Rows) -> Response | None:
        return await self._connections.request("POST", "/batch", self._head + b",".join(rows.bodies) + b"]}")

    def _take(self, rows: Rows, answer: Response, sent: Sent) -> Rows:
        """Book the rows that have their answer; those that must be sent again are returned."""
        if (len(rows), answer.body) == self._all_accepted:
            sent.accepted += len(rows)
            return _NO_ROWS
        read = _read(answer)
        if read is None or read.results is None:
            if answer.status == 500 or (read is None and not answer.has_end):
                return rows
            raise BackfillError(f"{self._to} answered {answer.status} without results: is it a server of this API?")
        if [result.index for result in read.results] != list(range(len(rows))):
            raise BackfillError(f"{self._to} answered for other rows than were sent: is it a server of this API?")
        failed = []
        refused = 0
        for place, result in enumerate(read.results):
            if result.success:
                continue
            if result.code == INVALID_EVENT:
                refused += 1
                sent.rejections.append(rows.rejection(place, result.message or ""))
            else:
                failed.append(place)
        sent.accepted += len(rows) - refused - len(failed)
        if not refused and not failed:
            self._all_accepted = len(rows), answer.body
        return rows.at(failed)

    async def _wait(self, attempt: int, answer: Response | None) -> None:
        self._window.went_badly()
        self.retries += 1
        loop = asyncio.get_running_loop()
        if self._in_trouble_since is None:
            self._in_trouble_since = loop.time()
        if loop.time() - self._in_trouble_since > self._patience_seconds:
            status = "no answer" if answer is None else f"status {answer.status}"
            raise BackfillError(
                f"{self._to}: {status} for {self._patience_seconds:.0f} s; go on later with the same command"
            )
        backoff = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN * 2 ** min(attempt, 10))
        await asyncio.sleep(_retry_after(answer) or backoff * random.uniform(0.5, 1.0))  # noqa: S311


async def fetch_limits(connections: Connections) -> Limits:
    """The server's limits; the contract's defaults where it does not say (contract.md section 6)."""
    answer = await connections.request("GET", "/limits")
    try:
        offered = msgspec.json.decode(answer.body) if answer is not None and answer.status == 200 else {}
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Limits()
    if not isinstance(offered, dict):
        return Limits()
    try:
        return Limits.model_validate({name: offered[name] for name in Limits.model_fields if name in offered})
    except ValidationError:
        return Limits()


def _is_too_much(answer: Response) -> bool:
    """Whether less may be taken: a 413 of whoever stands in the way, too, but a 400 of this API alone."""
    return answer.status == 413 or (answer.status == 400 and _read(answer) is not None)


def _may_help(status: int) -> bool:
    return status in _AGAIN or status >= 500


def _why(status: int) -> str:
    return _STOPPED.get(status, "not an answer of this API")


def _retry_after(answer: Response | None) -> float | None:
    try:
        seconds = float(answer.retry_after if answer is not None else "")
    except ValueError:
        return None
    return None if math.isnan(seconds) else min(max(seconds, BACKOFF_SECONDS_MIN), RETRY_AFTER_SECONDS_MAX)


def _read(answer: Response) -> _Answer | None:
    try:
        return _DECODER.decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _error_of(answer: Response) -> str:
    read = _read(answer)
    return (read.error if read is not None else None) or f"the server answered {answer.status}"


_NO_ROWS = Rows((), [], [])
_DECODER = msgspec.json.Decoder(_Answer)
