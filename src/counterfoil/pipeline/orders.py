"""Orders: what a command may change in the ledger, and how it is carried out.

An order names rows that a command found by reading. Carried out, it takes those that still are what they were, and
leaves the others out: so an order that is given twice, or late, does nothing wrong. While a pipeline runs it alone
writes the ledger, on settle's thread, because a group takes the next number of the one sequence.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from uuid import UUID

import msgspec

from counterfoil.contract.subject import Subject
from counterfoil.failpoints import reach
from counterfoil.ledger import Cause, ErasedThere, Erasure, ErasureState, Ledger, ResentRow

ROWS_AN_ORDER_MAX = 10_000
BYTES_AN_ORDER_MAX = 16 * 1024 * 1024
"""What one order may send again at most: a destination is handed an order's rows at once."""

ANSWER_SECONDS = 30.0
"""How long who gave an order waits: settle may be in a large group, on a slow disk."""


class SendAgain(msgspec.Struct, frozen=True, tag="send_again"):
    """Send rows to a destination again."""

    destination: str
    cause: Cause
    rows: tuple[ResentRow, ...]
    frame_bytes: int = 0
    """What they take, at about."""


class DropDead(msgspec.Struct, frozen=True, tag="drop_dead"):
    """Give dead letters up for good."""

    destination: str
    seqs: tuple[int, ...]


class Erase(msgspec.Struct, frozen=True, tag="erase"):
    """Erase a person's rows everywhere. Carried out is only that it is written down: the rest goes on beside."""

    id: UUID
    subject: Subject


class GiveUpErasures(msgspec.Struct, frozen=True, tag="give_up_erasures"):
    """Let no erasure wait for a destination any more: what it holds stays there. Answered with their number."""

    destination: str


Order = SendAgain | DropDead | Erase | GiveUpErasures


class Done(msgspec.Struct, frozen=True, tag="done"):
    """An order was carried out for so many rows."""

    row_count: int


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """An order was not carried out; `message` is one line for who gave it."""

    message: str


Answer = Done | Refused


def carry_out(ledger: Ledger, order: Order, now_ms: int, set_names: Iterable[str] = ()) -> Answer:
    """Do what an order says; `set_names` are the destinations that are set.

    Raises LedgerWriteFailed: nothing of it was done.
    """
    if isinstance(order, Erase):
        ledger.order_erasure(_erasure(ledger, order, now_ms, set(set_names)))
        return Done(0)
    if order.destination not in ledger.destinations():
        return Refused(f"{order.destination}: the ledger knows no destination of this name")
    match order:
        case GiveUpErasures():
            return Done(ledger.give_up_erasures(order.destination))
        case DropDead():
            return Done(ledger.drop_dead(order.destination, order.seqs))
        case SendAgain():
            if len(order.rows) > ROWS_AN_ORDER_MAX:
                return Refused(f"{len(order.rows)} rows in one order: expected {ROWS_AN_ORDER_MAX} at most")
            reach("orders.before_group")
            group = ledger.send_again(
                order.destination, order.cause, order.rows, frame_bytes=order.frame_bytes, at_ms=now_ms
            )
            reach("orders.after_group")
            return Done(group.row_count if group else 0)


def _erasure(ledger: Ledger, order: Erase, now_ms: int, set_names: set[str]) -> Erasure:
    states = {
        name: ErasedThere(ErasureState.WAITING if name in set_names else ErasureState.NOT_SET)
        for name in ledger.destinations()
    }
    return Erasure(order.id, now_ms, order.subject, states)


class OrderDesk:
    """Where orders wait for settle's thread."""

    def __init__(self, ledger: Ledger, clock_ms: Callable[[], int], set_names: Iterable[str]) -> None:
        self._ledger = ledger
        self._set_names = tuple(set_names)
        self._clock_ms = clock_ms
        self._waiting: queue.SimpleQueue[_Ticket] = queue.SimpleQueue()

    def submit(self, order: Order, wait_seconds: float = ANSWER_SECONDS) -> Answer:
        """Have an order carried out; from any thread but settle's."""
        ticket = _Ticket(order)
        self._waiting.put(ticket)
        if not ticket.done.wait(wait_seconds) or ticket.answer is None:
            return Refused(
                "the pipeline does not get to it; see `counterfoil trace` or `dead list` before trying again"
            )
        return ticket.answer

    def work(self) -> int:
        """Carry out what waits, on settle's thread; how many rows that was. Raises LedgerWriteFailed."""
        row_count = 0
        while True:
            try:
                ticket = self._waiting.get_nowait()
            except queue.Empty:
                return row_count
            ticket.answer = carry_out(self._ledger, ticket.order, self._clock_ms(), self._set_names)
            if isinstance(ticket.answer, Done):
                row_count += ticket.answer.row_count
            ticket.done.set()


class _Ticket:
    def __init__(self, order: Order) -> None:
        self.order = order
        self.answer: Answer | None = None
        self.done = threading.Event()
