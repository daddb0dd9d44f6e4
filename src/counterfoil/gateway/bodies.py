"""Reading of request bodies: within their size, within their time, and within what a worker may hold at once.

    announced too large  413 at once, the rest thrown away
    too large            413 as soon as it is, whether as sent or inflated; the rest thrown away up to twice the limit
    shorter than said    400
    damaged compression  400
    too slow             408, and the connection is closed
    over the budget      500, to be sent again

The budget counts what was received and what was inflated of it, until the request is answered: frames made of it are
about as large. It counts bytes that are here, not bytes that were announced, so that nobody holds it by a promise.
Bodies that are still arriving hold half of it at most, so that senders who stall keep out large bodies alone: one that
comes in one piece needs no room among those who wait.
"""

from __future__ import annotations

import asyncio
from io import BytesIO
from time import monotonic

from counterfoil.contract.limits import Limits
from counterfoil.contract.rejections import (
    body_damaged,
    body_incomplete,
    body_too_large,
    content_encoding_unknown,
    too_late,
)
from counterfoil.gateway.call import Call
from counterfoil.gateway.deadlines import CutOff, Deadlines
from counterfoil.gateway.inflating import SPOKEN_ENCODINGS, DamagedCompression, inflater
from counterfoil.gateway.rsgi import Exchange

THROW_AWAY_SECONDS = 1.0
"""How long the rest of a body is read that there was no room for: whoever sends it slowly is cut off."""

# How much is inflated before others get their turn.
_TURN_BYTES = 1024 * 1024


class OverBudget(Exception):
    """The worker holds as many bytes of bodies as it may."""


class Stopping(Exception):
    """The worker stops and did not wait for the rest of a request."""


class BodyBudget:
    """The bytes of bodies that a worker holds."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.held_bytes = 0
        self.arriving_bytes = 0
        """Of these, of bodies that are not here as a whole."""

    def has_room(self, byte_count: int) -> bool:
        return self.held_bytes + byte_count <= self.bytes_max

    def has_room_to_arrive(self, byte_count: int, body_bytes_max: int) -> bool:
        """Whether so much more of bodies may wait for their rest, of which one alone may have `body_bytes_max`."""
        return self.arriving_bytes + byte_count <= max(self.bytes_max // 2, body_bytes_max)


class Bodies:
    """Reads the bodies of a worker's requests."""

    def __init__(self, limits: Limits, budget: BodyBudget, deadlines: Deadlines) -> None:
        self.limits = limits
        self.budget = budget
        self.deadlines = deadlines

    async def read(self, call: Call) -> bytes:
        """The body as it was sent. Raises RequestRejected, OverBudget, Stopping."""
        length = call.length
        if length is not None:
            if length > self.limits.body_bytes_max:
                raise body_too_large(self.limits)
            if not self.budget.has_room(length):
                raise OverBudget
        if call.is_read:
            return b""
        call.has_begun = True
        exchange = call.exchange.__aiter__()
        task = self.deadlines.begin(call.until)
        try:
            body = await exchange.__anext__()
            if len(body) != length:  # Nearly every body is one piece.
                pieces = [body]
                del body  # A stalled request would hold its first piece twice.
                body = await self._collect(call, exchange, pieces)
        except StopAsyncIteration:
            body = b""
        except asyncio.CancelledError:
            cut = self.deadlines.cut(task)
            if cut is None:
                raise
            # The connection is given up: nothing more of it is read.
            call.is_read = True
            raise self._cut_off(cut) from None
        finally:
            self.deadlines.end(task)
            self.budget.arriving_bytes -= call.held_bytes
        call.is_read = True
        call.body_bytes = len(body)
        self._hold(call, len(body) - call.held_bytes)
        if length is not None and len(body) < length:
            raise body_incomplete()
        return body

    async def inflate(self, call: Call, body: bytes) -> bytes:
        """The body inflated, when it is compressed. Raises RequestRejected and OverBudget."""
        encoding = (call.encoding or "identity").strip().lower()
        if encoding == "identity":
            return body
        inflate = inflater(encoding)
        if inflate is None:
            raise content_encoding_unknown(SPOKEN_ENCODINGS)
        bytes_max = self.limits.body_bytes_max
        inflated = BytesIO()
        inflated_bytes = turn_bytes = 0
        try:
            for piece in inflate(body):
                inflated_bytes += len(piece)
                if inflated_bytes > bytes_max:
                    raise body_too_large(self.limits, is_inflated=True)
                self._hold(call, len(piece))
                inflated.write(piece)
                turn_bytes += len(piece)
                if turn_bytes > _TURN_BYTES:
                    turn_bytes = 0
                    await asyncio.sleep(0)
        except DamagedCompression:
            raise body_damaged(encoding) from None
        return inflated.getvalue()

    async def throw_away(self, call: Call, *, is_busy: bool = False) -> None:
        """Read what is left of a body that nobody wants, up to twice the limit; for THROW_AWAY_SECONDS when `is_busy`.

        A connection closed while its sender still writes reaches the sender as a broken one, and not the answer.
        """
        if call.is_read or self._waits_for_continue(call):
            return
        exchange = call.exchange if call.has_begun else call.exchange.__aiter__()
        call.has_begun = True
        left = 2 * self.limits.body_bytes_max
        until = min(call.until, monotonic() + THROW_AWAY_SECONDS) if is_busy else call.until
        task = self.deadlines.begin(until)
        try:
            while left > 0:
                left -= len(await exchange.__anext__())
        except StopAsyncIteration:
            call.is_read = True
        except asyncio.CancelledError:
            if self.deadlines.cut(task) is None:
                raise
        finally:
            self.deadlines.end(task)

    def release(self, call: Call) -> None:
        """Nothing of the request is held any more."""
        self.budget.held_bytes -= call.held_bytes
        call.held_bytes = 0

    async def _collect(self, call: Call, exchange: Exchange, pieces: list[bytes]) -> bytes:
        """The whole of a body of which these pieces have come."""
        bytes_max = self.limits.body_bytes_max
        collected = BytesIO()
        received = 0
        while True:
            received += len(pieces[-1])
            if received > bytes_max:
                raise body_too_large(self.limits)
            if not self.budget.has_room_to_arrive(len(pieces[-1]), bytes_max):
                raise OverBudget
            self._hold(call, len(pieces[-1]))
            self.budget.arriving_bytes += len(pieces[-1])
            collected.write(pieces.pop())
            if received == call.length:
                return collected.getvalue()
            try:
                pieces.append(await exchange.__anext__())
            except StopAsyncIteration:
                return collected.getvalue()

    def _hold(self, call: Call, byte_count: int) -> None:
        if not self.budget.has_room(byte_count):
            raise OverBudget
        call.held_bytes += byte_count
        self.budget.held_bytes += byte_count

    def _cut_off(self, cut: CutOff) -> Exception:
        if cut is CutOff.STOPPING:
            return Stopping()
        if cut is CutOff.CROWDED_OUT:
            return OverBudget()
        return too_late(self.limits)

    def _waits_for_continue(self, call: Call) -> bool:
        return not call.has_begun and call.headers.get("expect", "").lower() == "100-continue"  # type: ignore[union-attr]
