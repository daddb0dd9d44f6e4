"""What is done to a server's processes while clients send: killed, frozen, stopped; each alone or all at once.

After a fault the server has been started again where nobody else does it, and is ready.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence

from counterfoil.selftest.server import Part, ServerFailed, ServerUnderTest, send

Fault = Callable[[ServerUnderTest, random.Random], None]

FREEZE_SECONDS_MAX = 2.0
STARTING_SECONDS_MAX = 1.5
"""How long a server that is coming up may live before it is killed again."""


def kill_worker(server: ServerUnderTest, chance: random.Random) -> None:
    """SIGKILL for one gateway worker; the supervisor starts another."""
    _kill(server, Part.WORKER, chance)


def kill_pipeline(server: ServerUnderTest, chance: random.Random) -> None:
    """SIGKILL for the pipeline; the supervisor starts another."""
    _kill(server, Part.PIPELINE, chance)


def kill_console(server: ServerUnderTest, chance: random.Random) -> None:
    """SIGKILL for the console; the supervisor starts another."""
    _kill(server, Part.CONSOLE, chance)


def kill_supervisor(server: ServerUnderTest, _: random.Random) -> None:
    """SIGKILL for the supervisor: the others must notice and end, and a new server take over."""
    server.kill_supervisor()
    server.start()


def kill_all(server: ServerUnderTest, _: random.Random) -> None:
    """SIGKILL for every process at once."""
    server.kill_all()
    server.start()


def kill_all_and_again(server: ServerUnderTest, chance: random.Random) -> None:
    """SIGKILL for every process, and again while it is coming up, perhaps in the middle of mending."""
    server.kill_all()
    server.start(wait=False)
    time.sleep(chance.uniform(0.0, STARTING_SECONDS_MAX))
    server.kill_all()
    server.start()


def freeze_worker(server: ServerUnderTest, chance: random.Random) -> None:
    """SIGSTOP for one gateway worker, and SIGCONT a while later."""
    workers = server.pids(Part.WORKER)
    _freeze([chance.choice(workers)] if workers else [], chance)


def freeze_pipeline(server: ServerUnderTest, chance: random.Random) -> None:
    """SIGSTOP for the pipeline, and SIGCONT a while later."""
    _freeze(server.pids(Part.PIPELINE), chance)


def freeze_supervisor(server: ServerUnderTest, chance: random.Random) -> None:
    """SIGSTOP for the supervisor, and SIGCONT a while later."""
    _freeze([server.supervisor], chance)


def freeze_and_kill(server: ServerUnderTest, chance: random.Random) -> None:
    """SIGSTOP for the workers, SIGKILL for the pipeline while nobody feeds it, SIGCONT, then SIGKILL for all."""
    frozen = server.pids(Part.WORKER)
    for pid in frozen:
        send(pid, signal.SIGSTOP)
    _kill(server, Part.PIPELINE, chance)
    time.sleep(chance.uniform(0.0, FREEZE_SECONDS_MAX))
    for pid in frozen:
        send(pid, signal.SIGCONT)
    kill_all(server, chance)


def lose_ledger(server: ServerUnderTest, _: random.Random) -> None:
    """SIGKILL for every process, and the ledger is gone: it is rebuilt from what queue and destinations hold.

    Not among `FAULTS`: rows of destinations that can't be asked would come twice or not at all. Raises ServerFailed.
    """
    server.kill_all()
    shutil.rmtree(server.directory / "data" / "ledger")
    rebuilt = server.run("rebuild")
    if rebuilt.returncode != 0:
        raise ServerFailed(f"rebuild ended with status {rebuilt.returncode}:\n{rebuilt.stdout}{rebuilt.stderr}")
    server.start()


def stop(server: ServerUnderTest, _: random.Random) -> None:
    """SIGTERM: it answers what is in flight and ends with status 0."""
    server.stop()
    server.start()


FAULTS: tuple[Fault, ...] = (
    kill_worker,
    kill_pipeline,
    kill_console,
    kill_supervisor,
    kill_all,
    kill_all_and_again,
    freeze_worker,
    freeze_pipeline,
    freeze_supervisor,
    freeze_and_kill,
    stop,
)


def _kill(server: ServerUnderTest, part: Part, chance: random.Random) -> None:
    # None runs when the supervisor is just starting it again: that death counts.
    if pids := server.pids(part):
        send(chance.choice(pids), signal.SIGKILL)


def _freeze(pids: Sequence[int], chance: random.Random) -> None:
    for pid in pids:
        send(pid, signal.SIGSTOP)
    try:
        time.sleep(chance.uniform(0.1, FREEZE_SECONDS_MAX))
    finally:
        for pid in pids:
            send(pid, signal.SIGCONT)
