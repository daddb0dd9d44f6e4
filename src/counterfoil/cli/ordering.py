"""Giving orders: to the pipeline that runs, or to the ledger itself where none does."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from counterfoil.config import Settings
    from counterfoil.pipeline.orders import Answer, Order

WAIT_SECONDS = 10.0
"""How long a pipeline that is starting is waited for."""

_POLL_SECONDS = 0.1


def give(settings: Settings, orders: Iterable[Order]) -> int:
    """Have orders carried out, one after the other; for how many rows that was done.

    Raises PipelineUnreachable, OrderRefused, StartRefused and LedgerUnusable; what was done before stays done.
    """
    from counterfoil.errors import OrderRefused
    from counterfoil.pipeline.orders import Done

    row_count = 0
    with _taker(settings) as submit:
        for order in orders:
            answer = submit(order)
            if not isinstance(answer, Done):
                raise OrderRefused(answer.message)
            row_count += answer.row_count
    return row_count


@contextlib.contextmanager
def _taker(settings: Settings) -> Iterator[Callable[[Order], Answer]]:
    from counterfoil.datadir import DataDir, Part
    from counterfoil.errors import PipelineUnreachable, StartRefused
    from counterfoil.pipeline.control import ControlClient

    data = DataDir(settings.data_dir)
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        client = ControlClient.connect(settings.data_dir)
        if client is not None:
            with contextlib.closing(client):
                yield client.submit
            return
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(data.lock(Part.PIPELINE, wait_seconds=0))
            except StartRefused as refused:
                if time.monotonic() >= deadline:
                    raise PipelineUnreachable(
                        f"{data.holder() or 'another process'} works here and its pipeline takes no orders; "
                        "see its log for `pipeline.held` or `control.unavailable`"
                    ) from refused
            else:
                yield held.enter_context(_own_ledger(settings))
                return
        time.sleep(_POLL_SECONDS)


@contextlib.contextmanager
def _own_ledger(settings: Settings) -> Iterator[Callable[[Order], Answer]]:
    from counterfoil.datadir import DataDir
    from counterfoil.ledger import Ledger
    from counterfoil.pipeline.orders import carry_out

    data = DataDir(settings.data_dir)
    names = [destination.name for destination in settings.destinations]
    ledger = Ledger.open(data.ledger, settings.ledger, data.id)
    try:
        yield lambda order: carry_out(ledger, order, time.time_ns() // 1_000_000, names)
    finally:
        ledger.close()
