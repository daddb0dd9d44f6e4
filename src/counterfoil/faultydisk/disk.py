"""The handle of a faulty disk."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import msgspec

from counterfoil.faultydisk.faults import Fault
from counterfoil.faultydisk.process import (
    Ask,
    DiskState,
    Order,
    PowerOff,
    PowerOn,
    SetFaults,
    SetRoom,
    Unplug,
)
from counterfoil.faultydisk.tree import CutReport


class DiskUnavailable(Exception):
    """No such disk can be had here: no /dev/fuse, or no right to mount."""


class FaultyDisk:
    """A disk at a mount point, empty and without faults at first. A context manager: mounted inside, gone after it.

    A power cut goes: `power_off`; kill what runs on it; `unplug`; wait until that has ended; `power_on`.
    """

    def __init__(self, mount_point: Path, seed: int) -> None:
        """`mount_point` is an empty directory; `seed` decides whatever the orders leave open."""
        self.mount_point = mount_point
        self._seed = seed
        self._process: subprocess.Popen[bytes] | None = None
        self._decoder = msgspec.json.Decoder(DiskState)
        self._lock = threading.Lock()

    def __enter__(self) -> FaultyDisk:
        """Raises DiskUnavailable."""
        self._process = subprocess.Popen(
            (sys.executable, "-P", "-m", "counterfoil.faultydisk.process", str(self.mount_point), str(self._seed)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            self._order(PowerOn(self._seed))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmount, and forget everything; closing twice is harmless."""
        process, self._process = self._process, None
        if process is not None:
            process.communicate()

    def power_off(self, after: int = 0) -> None:
        """Do and answer nothing any more, at once or after so many operations that change or flush something."""
        self._order(PowerOff(after))

    def unplug(self) -> None:
        """Let every process that waits for the disk go, with an error."""
        self._order(Unplug())

    def power_on(self, seed: int) -> CutReport:
        """Mount what the power cut left; the seed decides what that is."""
        cut = self._order(PowerOn(seed)).cut
        return cut if cut is not None else CutReport(seed, 0, 0, 0, 0)

    def resume(self) -> None:
        """Mount again after `unplug` with all that was written: no power was cut, only what ran here was killed.

        What was stored through a map and not flushed may be lost all the same.
        """
        self._order(PowerOn(None))

    def set_faults(self, faults: Iterable[Fault]) -> None:
        """Let these be all faults from now on; none heals it."""
        self._order(SetFaults(list(faults)))

    def set_room(self, room_bytes: int | None, *, more: bool = False) -> None:
        """Let it hold so many bytes at most, or with `more` so many more than now; None: no end."""
        self._order(SetRoom(room_bytes, more))

    def state(self) -> DiskState:
        """How it stands."""
        return self._order(Ask())

    def _order(self, order: Order) -> DiskState:
        process = self._process
        assert process is not None, "used outside its context"
        assert process.stdin is not None
        assert process.stdout is not None
        with self._lock:
            process.stdin.write(msgspec.json.encode(order) + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        if not line:
            raise DiskUnavailable("the disk's process ended")
        state = self._decoder.decode(line)
        if state.refusal:
            raise DiskUnavailable(f"it can't be mounted: {state.refusal}")
        return state
