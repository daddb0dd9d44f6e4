"""The gateway's requests: routes, the order of checks, and the one place where an error becomes an answer.

    __rsgi__        one request, from its head to its answer
      _handler      path and method
      _batch, _take_row
                    content type, size, encoding (`bodies`), JSON, shape (contract), token (`sources`), rows (contract),
                    frames (`frames`), the flush (queue)
      _answer_to    whatever went wrong -> its answer

The checks stand in the order of contract.md section 3, so that a bad token is told before any row is judged. A request
waits for two things: the rest of its body, and the flush of its frames.

A large request is judged in pieces, and one such request at a time until it is flushed: small ones pass between the
pieces, and what judging and flushing need besides the body is needed once. What would come up late is refused
(`admission`).
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from functools import partial
from time import monotonic

import msgspec
import structlog

from counterfoil import __version__
from counterfoil.contract import rejections, unavailability
from counterfoil.contract.answers import (
    JSON_HEADERS,
    TRACK_ACCEPTED,
    Answer,
    batch_answer,
    error_answer,
)
from counterfoil.contract.limits import Limits
from counterfoil.contract.openapi import openapi_document
from counterfoil.contract.rejections import RequestRejected
from counterfoil.contract.requests import (
    BatchRequest,
    IdentifyRequest,
    TrackRequest,
    read_batch,
    read_identify,
    read_track,
)
from counterfoil.contract.rows import IDENTIFY_EVENT, JudgedRows, RowRules, judge_batch, judge_identify, judge_track
from counterfoil.errors import DiskReserveReached, FlushFailed, QueueRefused
from counterfoil.gateway.admission import Admission, TooBusy, Turn
from counterfoil.gateway.bodies import Bodies, BodyBudget, OverBudget, Stopping
from counterfoil.gateway.call import Call
from counterfoil.gateway.cors import Cors
from counterfoil.gateway.counts import GatewayCounts
from counterfoil.gateway.deadlines import Deadlines
from counterfoil.gateway.frames import Frames, Receipt
from counterfoil.gateway.rates import Rates
from counterfoil.gateway.rsgi import Exchange, Headers, Scope
from counterfoil.gateway.settings import GatewaySettings
from counterfoil.gateway.uuid7 import Uuid7
from counterfoil.positions import FramePosition
from counterfoil.queue import FrameSink
from counterfoil.queue.settings import QueueSettings
from counterfoil.sources import Sender, Sources, SourceSettings

BASE_PATH = "/api/v1"
EXPERIMENTS_PATH = f"{BASE_PATH}/experiments/"
"""What SDKs have and this server does not offer (contract.md section 1)."""

REQUEST_ID_HEADER = "x-request-id"

# Bodies up to this size that are not compressed are judged at once; others take their turn.
_SMALL_BYTES = 256 * 1024
# A piece of a large request takes about as long as a small request.
_PIECE_ROWS = 2048
_PIECE_BYTES = 512 * 1024

_SENDER_VERSION_CHARS_MAX = 2000

Handler = Callable[[Call], Awaitable[Answer]]
_RowRequest = TrackRequest | IdentifyRequest
_ReadRow = Callable[[bytes, Limits], _RowRequest]
_JudgeRow = Callable[[_RowRequest, RowRules, int, str], JudgedRows]


class _TakenBatch(msgspec.Struct, frozen=True, gc=False):
    """A /batch whose rows are judged, and whose accepted ones the queue has."""

    source: str
    row_count: int
    faults: dict[int, str]
    waiting: list[tuple[asyncio.Future[FramePosition], list[int]]]
    """Each frame's flush, and the indexes of its rows."""


class Application:
    """What a gateway worker does with a request: an RSGI application."""

    def __init__(
        self,
        settings: GatewaySettings,
        limits: Limits,
        queue: QueueSettings,
        sources: Sources,
        sink: FrameSink,
        *,
        rates: Rates,
        clock_ms: Callable[[], int],
        ids: Uuid7,
    ) -> None:
        self._limits = limits
        self._sources = sources
        self._sink = sink
        self._rates = rates
        self._cors = Cors(settings.cors_origins) if settings.cors_origins else None
        self._clock_ms = clock_ms
        self._ids = ids
        self._frames = Frames(queue)
        self._deadlines = Deadlines()
        self._bodies = Bodies(limits, BodyBudget(settings.bodies_bytes_max), self._deadlines)
        self._admission = Admission()
        self._turn = Turn()
        self._is_stopping = False
        self.counts = GatewayCounts()
        self._in_flight = 0
        self._log = structlog.get_logger().bind()
        self._logs_requests = self._log.is_enabled_for(logging.DEBUG)
        self._routes: dict[str, dict[str, Handler]] = {
            f"{BASE_PATH}/batch": self._taking(self._batch),
            f"{BASE_PATH}/track": self._taking(partial(self._take_row, read_track, judge_track)),
            f"{BASE_PATH}/identify": self._taking(partial(self._take_row, read_identify, judge_identify)),
            f"{BASE_PATH}/limits": self._showing(self._show_limits),
            f"{BASE_PATH}/openapi": self._showing(self._show_openapi),
            "/livez": self._showing(self._live),
            "/readyz": self._showing(self._ready),
        }

    async def __rsgi__(self, scope: Scope, exchange: Exchange) -> None:
        """Answer one request, whatever it is and whatever goes wrong."""
        began = monotonic()
        headers = scope.headers
        until = began + self._limits.request_seconds_max
        call = Call(headers, exchange, self._ids.next(self._clock_ms()), until)
        self._in_flight += 1
        is_busy = False
        try:
            try:
                answer = await self._handler(scope, call)(call)
            except Exception as error:  # The edge of a request: everything becomes an answer, and is counted.
                answer = self._answer_to(error, call)
                is_busy = isinstance(error, OverBudget)
            if not call.is_read:
                # The error is gone, and with its traceback what of the body it held.
                self._bodies.release(call)
                await self._bodies.throw_away(call, is_busy=is_busy)
        finally:
            self._bodies.release(call)
            self._in_flight -= 1
        answer_headers = [*answer.headers, (REQUEST_ID_HEADER, call.id_text)]
        if not call.is_read:
            # Behind a body that nobody reads no request can be told from it: whoever sends one would get no answer.
            answer_headers.append(("connection", "close"))
        if self._cors is not None:
            answer_headers += self._cors.answer_headers(headers)
        exchange.response_bytes(answer.status, answer_headers, answer.body)
        seconds = monotonic() - began
        self.counts.add_request(call.path, answer.status, seconds, call.body_bytes)
        if self._logs_requests:
            self._log.debug(
                "gateway.answered",
                request=call.id_text,
                path=call.path,
                status=answer.status,
                body_bytes=call.body_bytes,
                seconds=seconds,
            )

    @property
    def in_flight(self) -> int:
        """Requests that are not answered yet."""
        return self._in_flight

    @property
    def held_bytes(self) -> int:
        """Bytes of bodies that it holds."""
        return self._bodies.budget.held_bytes

    def begin_stop(self) -> None:
        """Say from now on that it is not ready; requests are answered as before."""
        self._is_stopping = True

    def cut_off(self) -> None:
        """Answer the requests that have not arrived whole; those that have are answered as before."""
        self._deadlines.cut_all()

    def close(self) -> None:
        """Stop what runs by itself; closing twice is harmless."""
        self._deadlines.close()

    def reload(
        self, sources: Sequence[SourceSettings], limits: Limits, destinations: Collection[str] | None = None
    ) -> None:
        """Judge later requests by these; those that have come go on by what they found. On the event loop only.

        Raises SettingsInvalid, and then everything stays as it is. How long a request's headers may take is Granian's
        to watch, and stays what it was at the start.
        """
        self._sources.replace(sources, limits, destinations)
        self._limits = self._bodies.limits = limits

    def _handler(self, scope: Scope, call: Call) -> Handler:
        path = scope.path
        handlers = self._routes.get(path)
        if handlers is None:
            if path.startswith(EXPERIMENTS_PATH):
                raise rejections.path_not_offered()
            raise rejections.path_unknown(is_outside_base=not path.startswith(f"{BASE_PATH}/"))
        call.path = path
        handler = handlers.get(scope.method)
        if handler is None:
            raise rejections.method_wrong(handlers)
        return handler

    async def _batch(self, call: Call) -> Answer:
        _check_content_type(call)
        body = await self._bodies.read(call)
        if call.encoding is None and len(body) <= _SMALL_BYTES:
            self._admission.admit()
            request = read_batch(body, self._limits)
            if len(request.rows) <= _PIECE_ROWS:
                taken = await self._take_batch(call, request)
                # What waits for the disk is in the frames, a second time and often compressed.
                del body, request
                return await self._confirm(taken)
            # Read again when its turn has come: rows of two bytes are a hundred times as large when they are objects.
            del request
        async with self._turn:
            body = await self._bodies.inflate(call, body)
            taken = await self._take_batch(call, read_batch(body, self._limits))
            del body
            return await self._confirm(taken)

    async def _take_batch(self, call: Call, request: BatchRequest) -> _TakenBatch:
        """Judge the rows of a /batch, and give the accepted ones to the queue."""
        row_count = len(request.rows)
        sender = self._sender(request.token, row_count)
        receipt = self._receipt(call, sender)
        faults: dict[int, str] = {}
        waiting: list[tuple[asyncio.Future[FramePosition], list[int]]] = []
        for start, end in _pieces(row_count, request.body_bytes):
            if start:
                await asyncio.sleep(0)
            rows = judge_batch(request, sender.rules, receipt.received_at_ms, start, end)
            faults.update(rows.faults)
            for frame in self._frames.draft(rows, receipt):
                (future,) = self._sink.append((frame.draft,))
                waiting.append((future, rows.indexes[frame.start : frame.end]))
        return _TakenBatch(sender.source, row_count, faults, waiting)

    async def _confirm(self, taken: _TakenBatch) -> Answer:
        """Wait for the queue, and say what became of each row."""
        queue_failed: list[int] = []
        for future, indexes in taken.waiting:
            try:
                await future
            except (QueueRefused, FlushFailed):
                queue_failed += indexes
        accepted = taken.row_count - len(taken.faults) - len(queue_failed)
        self.counts.add_rows(taken.source, accepted, len(taken.faults), len(queue_failed))
        return batch_answer(taken.row_count, taken.faults, queue_failed)

    async def _take_row(self, read: _ReadRow, judge: _JudgeRow, call: Call) -> Answer:
        """Take the one row of a /track or /identify."""
        _check_content_type(call)
        body = await self._bodies.read(call)
        if call.encoding is not None:
            async with self._turn:
                body = await self._bodies.inflate(call, body)
        self._admission.admit()
        request = read(body, self._limits)
        sender = self._sender(request.token, 1)
        receipt = self._receipt(call, sender)
        rows = judge(request, sender.rules, receipt.received_at_ms, call.id_text)
        if rows.faults:
            self.counts.add_rows(sender.source, 0, invalid=1)
            raise rejections.row_invalid(rows.faults[0])
        (future,) = self._sink.append((self._frames.draft_row(rows, receipt),))
        # An /identify without an identity sets the same properties again (contract.md section 8).
        call.may_repeat = not rows.has_made_distinct_id or rows.events[0] == IDENTIFY_EVENT
        try:
            await future
        except (QueueRefused, FlushFailed):
            self.counts.add_rows(sender.source, 0, queue_failed=1)
            raise
        self.counts.add_rows(sender.source, 1)
        return TRACK_ACCEPTED

    def _sender(self, token: str, row_count: int) -> Sender:
        """Whose token it is, if so many rows of it can be taken now."""
        sender = self._sources.find(token)
        if sender is None:
            raise rejections.token_unknown()
        refusal = self._sink.refusal()
        if refusal is not None:
            raise refusal
        if sender.rows_per_second_max:
            wait_seconds = self._rates.take(sender.source, row_count, sender.rows_per_second_max)
            if wait_seconds:
                raise rejections.rate_limited(math.ceil(wait_seconds))
        return sender

    def _receipt(self, call: Call, sender: Sender) -> Receipt:
        return Receipt(sender, _sender_version(call.headers), self._clock_ms(), call.request_id)

    async def _show_limits(self, call: Call) -> Answer:
        return Answer(200, msgspec.json.encode(self._limits.model_dump()))

    async def _show_openapi(self, call: Call) -> Answer:
        return Answer(200, msgspec.json.encode(openapi_document(self._limits, __version__)))

    async def _live(self, call: Call) -> Answer:
        return Answer(200, b'{"success":true}')

    async def _ready(self, call: Call) -> Answer:
        """Ready is: the queue can take a row now."""
        if self._is_stopping:
            return _not_ready("the server is stopping")
        if self._sink.refusal() is not None:
            return _not_ready("the queue takes no rows now")
        return Answer(200, b'{"success":true}')

    def _taking(self, handler: Handler) -> dict[str, Handler]:
        return self._with_options({"POST": handler})

    def _showing(self, handler: Handler) -> dict[str, Handler]:
        return self._with_options({"GET": handler, "HEAD": handler})

    def _with_options(self, handlers: dict[str, Handler]) -> dict[str, Handler]:
        methods = ", ".join((*handlers, "OPTIONS"))

        async def options(call: Call) -> Answer:
            preflight = () if self._cors is None else self._cors.preflight_headers(call.headers, methods)
            return Answer(204, b"", (("allow", methods), *preflight))

        return handlers | {"OPTIONS": options}

    def _answer_to(self, error: Exception, call: Call) -> Answer:
        """The answer to what went wrong: the one place where an error becomes one."""
        if isinstance(error, RequestRejected):
            return error_answer(error)
        if isinstance(error, OverBudget):
            return unavailability.server_full()
        if isinstance(error, TooBusy):
            return unavailability.server_busy()
        if isinstance(error, Stopping):
            return unavailability.server_stopping()
        if isinstance(error, DiskReserveReached):
            return unavailability.disk_full()
        if isinstance(error, QueueRefused):
            return unavailability.queue_refusing()
        if not isinstance(error, FlushFailed):
            self._log.error("gateway.unforeseen", request=call.id_text, exc_info=error)
        return unavailability.nothing_confirmed() if call.may_repeat else unavailability.row_uncertain()


def _pieces(row_count: int, body_bytes: int) -> Iterator[tuple[int, int]]:
    """The rows of a request in pieces that take about as long as a small request each."""
    rows = max(1, min(_PIECE_ROWS, row_count * _PIECE_BYTES // body_bytes))
    for start in range(0, row_count, rows):
        yield start, min(start + rows, row_count)


def _check_content_type(call: Call) -> None:
    content_type = call.headers.get("content-type")
    if content_type == "application/json":
        return
    if content_type is None or content_type.partition(";")[0].strip().lower() != "application/json":
        raise rejections.content_type_wrong()


def _sender_version(headers: Headers) -> str | None:
    """What SDKs say of themselves in headers (contract.md section 4)."""
    language = headers.get("x-stainless-lang")
    version = headers.get("x-stainless-package-version")
    if not language or not version:
        return None
    text = f"ingest-sdk-{language}/{version}"
    return text if len(text) <= _SENDER_VERSION_CHARS_MAX else None


def _not_ready(reason: str) -> Answer:
    return Answer(503, msgspec.json.encode({"success": False, "error": reason}), JSON_HEADERS)
