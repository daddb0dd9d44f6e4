"""Power cuts that are simulated: the data directory lies on a disk in memory that forgets what was not flushed.

It shows whether this server asks for every flush that it needs; whether the machine's own disk obeys, it can't show
(see `plug`). It needs FUSE and the right to mount, and raises `DiskUnavailable` where it has neither.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

from counterfoil.faultydisk.disk import FaultyDisk
from counterfoil.selftest.faults import Fault
from counterfoil.selftest.server import ServerUnderTest

OPERATIONS_MAX = 1500
SECONDS_MAX = 4.0
AGAIN = 0.35
"""How often the power goes again while the server comes up."""


def mounted_disk(directory: Path, seed: int) -> FaultyDisk:
    """The disk that is the data directory of a server in `directory`, not mounted yet."""
    mount_point = directory / "data"
    mount_point.mkdir(mode=0o700, parents=True, exist_ok=True)
    return FaultyDisk(mount_point, seed)


def power_cut(disk: FaultyDisk) -> Fault:
    """The power goes at an operation or a moment that chance names; what was not flushed is gone in part or whole."""

    def cut_power(server: ServerUnderTest, chance: random.Random) -> None:
        _cut(disk, server, chance)
        while chance.random() < AGAIN:
            server.start(wait=False)
            _cut(disk, server, chance)
        server.start()

    return cut_power


def _cut(disk: FaultyDisk, server: ServerUnderTest, chance: random.Random) -> None:
    if chance.random() < 0.7:
        disk.power_off(after=chance.randrange(1, OPERATIONS_MAX))
    _wait_until(lambda: disk.state().is_off, chance.uniform(0.05, SECONDS_MAX))
    disk.power_off()
    server.kill_all(disk.unplug)
    disk.power_on(chance.randrange(1 << 30))


def _wait_until(is_so: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.02)
