"""The pipeline's process: settle on the main thread, one thread a destination, one for retention, one for orders.

Until its lifeline ends.

Settle wakes the destinations when it has made a group; each goes at its own pace. What one destination can't do
stays with it. What goes wrong in settle or in the ledger ends the process: the next life opens the ledger anew and
finds there what really is.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol
from uuid import UUID

import structlog

from counterfoil.datadir import DataDir
from counterfoil.destinations.build import build_destination
from counterfoil.destinations.settings import DeltaSettings, DestinationSettings
from counterfoil.errors import LedgerInUse, LedgerUnusable, LedgerWriteFailed, StartRefused
from counterfoil.files import RealFiles, is_standing
from counterfoil.ledger import Ledger
from counterfoil.lifeline import Lifeline
from counterfoil.pipeline.control import ControlServer
from counterfoil.pipeline.deliver import Deliverer, DeliveryObserver, DeliveryState
from counterfoil.pipeline.erasing import Eraser, Interrupted
from counterfoil.pipeline.orders import Answer, Order, OrderDesk
from counterfoil.pipeline.replacements import Replacements
from counterfoil.pipeline.retention import Retention, tell_unset
from counterfoil.pipeline.room import Room
from counterfoil.pipeline.settle import Settler
from counterfoil.pipeline.task import PipelineTask
from counterfoil.queue import FrameSource
from counterfoil.queue.reader import QueueReader
from counterfoil.telemetry.logs import configure_logs
from counterfoil.telemetry.metrics import PipelineMetrics, start_metrics

log = structlog.get_logger()

STOP_SECONDS = 6.0
"""How long a worker may take to finish its step at the stop."""

HELD_SECONDS = 60.0
"""How long a life lasts that can't use its ledger: the next one looks again."""

EXIT_HELD = 75

ID_LOST = (
    "the data directory's `id` is lost, and neither `ledger.made` nor the ledger tells it: put back the file, or stop "
    "the server and run `counterfoil rebuild`, which asks the destinations"
)

AGAIN_SECONDS = 5.0
"""After an error that nobody understood, a worker is started again after this time."""


class Working(Protocol):
    """What works beside settle on a thread of its own: delivers to one destination, or removes what is over."""

    @property
    def name(self) -> str:
        """The destination's name, or what it does."""
        ...

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set and `wake` called; what the outside can cause is dealt with inside."""
        ...

    def wake(self) -> None:
        """There is a new group, or `run` is to stop."""
        ...


class Pipeline:
    """Settle, and what works beside it, in one process."""

    def __init__(
        self,
        settle_step: Callable[[], int],
        workers: Sequence[Working],
        *,
        poll_seconds: float,
    ) -> None:
        """`settle_step` settles a group and gives its rows, 0 when there was nothing to settle."""
        self._settle_step = settle_step
        self._workers = workers
        self._poll_seconds = poll_seconds
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._work, args=(each,), name=f"pipeline {each.name}", daemon=True)
            for each in workers
        ]

    def stop(self) -> None:
        """Let each finish its step; from any thread, and harmless twice."""
        self._stop.set()
        self._wake()

    def run(self) -> bool:
        """Settle and work until `stop`; whether every worker came to its end then.

        Raises what settle raised, and what a worker met in the ledger.
        """
        for thread in self._threads:
            thread.start()
        try:
            self._settle()
        finally:
            self.stop()
            is_quiet = self._await_threads()
        if self._failure is not None:
            raise self._failure
        return is_quiet

    def _settle(self) -> None:
        while not self._stop.is_set():
            if self._settle_step():
                self._wake()
            else:
                self._stop.wait(self._poll_seconds)

    def _wake(self) -> None:
        for worker in self._workers:
            worker.wake()

    def _work(self, worker: Working) -> None:
        while not self._stop.is_set():
            try:
                worker.run(self._stop)
            except (LedgerWriteFailed, LedgerUnusable) as failure:
                self._failure = failure
                self.stop()
            except Exception as problem:
                log.error("pipeline.worker_failed", worker=worker.name, exc_info=problem)
                self._stop.wait(AGAIN_SECONDS)

    def _await_threads(self) -> bool:
        deadline = time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)


def main() -> None:
    """Run the pipeline as its supervisor asks."""
    line = Lifeline.of_stdin()
    task = PipelineTask.model_validate_json(line.settings())
    configure_logs("pipeline")
    stop = threading.Event()
    running: list[Pipeline] = []

    def end() -> None:
        stop.set()
        for pipeline in running:
            pipeline.stop()

    line.watch(end)
    try:
        with DataDir(task.data_dir).refusing(is_standing):
            if task.ledger_id is None:
                raise LedgerUnusable(ID_LOST)
            ledger = Ledger.open(task.data_dir / "ledger", task.ledger, task.ledger_id)
            names = [each.name for each in task.destinations]
            metrics = PipelineMetrics(start_metrics(task.metrics_dir, "pipeline"), names)
            running.append(make_pipeline(task, task.ledger_id, ledger, metrics, line))
            if stop.is_set():
                return
            line.ready()
            if not running[0].run():
                # A destination is still in its step, and holds the ledger: what it can't finish, the next life does.
                log.warning("pipeline.left_behind")
                os._exit(0)
            ledger.close()
    except LedgerInUse:
        raise
    except (LedgerUnusable, StartRefused) as problem:
        # Rows are safe in the queue, and trying again can't help: what to do is said once, not with each of many lives.
        log.error("pipeline.held", reason=str(problem))
        line.hold(str(problem))
        stop.wait(HELD_SECONDS)
        os._exit(0 if stop.is_set() else EXIT_HELD)


def make_pipeline(
    task: PipelineTask, ledger_id: UUID, ledger: Ledger, metrics: PipelineMetrics, line: Lifeline
) -> Pipeline:
    """Settle and a deliverer for each destination, on one ledger; raises LedgerUnusable."""
    queue = QueueReader(task.data_dir / "queue", RealFiles(), task.data_dir / "quarantine")
    queue.remove_unfinished()
    for each in task.destinations:
        # Before the first group is settled: what is settled earlier is not for a destination that nobody knew.
        ledger.register_destination(each.name, from_oldest=each.start == "oldest")
    deliverers = [
        make_deliverer(each, task, ledger_id, ledger, queue, metrics, teller(each.name, line))
        for each in task.destinations
    ]
    names = [each.name for each in task.destinations]
    tell_unset(ledger, names)
    gate = threading.Lock()
    retention = Retention(ledger, queue, names, task.queue.retention_days, gate)

    def wake_deliverers() -> None:
        for each in deliverers:
            each.wake()

    eraser = Eraser(ledger, queue, gate, on_marked=wake_deliverers)
    settler = Settler(queue, ledger, task.pipeline, _clock_ms)
    replacements = Replacements(ledger, queue, _clock_ms)
    desk = OrderDesk(ledger, _clock_ms, names)

    def submit(order: Order) -> Answer:
        answer = desk.submit(order)
        # Settle wakes the others when it has made a group; this order makes none.
        eraser.wake()
        return answer

    control = ControlServer(task.data_dir, submit)

    def settle_step() -> int:
        if ordered := desk.work():
            return ordered
        began = time.monotonic()
        row_count = settler.step()
        if row_count:
            metrics.settled(time.monotonic() - began)
        return row_count + replacements.step()

    return Pipeline(settle_step, [*deliverers, retention, eraser, control], poll_seconds=task.pipeline.poll_ms / 1000)


def erase_here(task: PipelineTask, ledger_id: UUID, ledger: Ledger, patience_seconds: float) -> None:
    """Carry out the erasures that are ordered, where no pipeline runs; what a destination can't do now stays ordered.

    So does all of it where a gateway holds its writer's directory and does not close its segment in time.

    Raises OSError where the disk did not let one of them be done, when the others are, LedgerWriteFailed and
    LedgerUnusable.
    """
    queue = QueueReader(task.data_dir / "queue", RealFiles(), task.data_dir / "quarantine")
    queue.remove_unfinished()
    settler = Settler(queue, ledger, task.pipeline, _clock_ms)
    eraser = Eraser(ledger, queue, threading.Lock(), settle=settler.step, patience_seconds=patience_seconds)
    ledger.let_subjects_go()
    trouble: OSError | None = None
    is_more = True
    while is_more:
        try:
            is_more = eraser.step()
        except OSError as problem:
            trouble = problem
        except Interrupted:
            return
    known = ledger.destinations()
    for each in task.destinations:
        # One that is new in the configuration was handed nothing yet.
        if each.name in known:
            make_deliverer(each, task, ledger_id, ledger, queue).erase_once()
    if trouble is not None:
        raise trouble


def make_deliverer(
    settings: DestinationSettings,
    task: PipelineTask,
    ledger_id: UUID,
    ledger: Ledger,
    queue: FrameSource,
    observer: DeliveryObserver | None = None,
    on_state: Callable[[DeliveryState], None] = lambda _: None,
) -> Deliverer:
    """What delivers to one of the destinations."""
    destination = build_destination(
        settings,
        ledger_id=ledger_id,
        base=task.data_dir,
        files=RealFiles(),
        quarantine=task.data_dir / "quarantine",
        clock_ms=_clock_ms,
    )
    return Deliverer(
        destination, ledger, queue, settings,
        clock_ms=_clock_ms, observer=observer, on_state=on_state, look_for_room=room_for(settings, task),
    )  # fmt: skip


def teller(name: str, line: Lifeline) -> Callable[[DeliveryState], None]:
    """What tells the supervisor how it goes with a destination."""

    def tell(state: DeliveryState) -> None:
        line.condition(name, f"{state.status}: {state.reason}" if state.reason else state.status)

    return tell


def room_for(settings: DestinationSettings, task: PipelineTask) -> Callable[[], None]:
    """What looks before each delivery whether there is room for it; only a table on our own disk needs any."""
    room = Room(task.data_dir, RealFiles(), task.queue)
    if not isinstance(settings, DeltaSettings) or "://" in str(settings.path):
        return lambda: None
    return room.look if room.is_shared_with(task.data_dir / settings.path) else lambda: None


def _clock_ms() -> int:
    return time.time_ns() // 1_000_000


if __name__ == "__main__":
    main()
