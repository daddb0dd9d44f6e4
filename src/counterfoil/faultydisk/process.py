"""The process of a faulty disk: one loop over the kernel's requests and the handle's orders.

Orders come as lines of JSON on standard input, each answered by a line on standard output. When standard input ends,
the file system is unmounted and the process ends: nobody is left who could tell it what to do.
"""

from __future__ import annotations

import ctypes
import errno
import heapq
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import msgspec

from counterfoil.faultydisk.faults import Fault, Faults
from counterfoil.faultydisk.kernel import REQUEST_BYTES_MAX, Request, Requests
from counterfoil.faultydisk.tree import CutReport, Tree

DEVICE = "/dev/fuse"

_NOSUID, _NODEV = 2, 4
_DETACH = 2


class PowerOn(msgspec.Struct, frozen=True, tag=True):
    """Mount; after `PowerOff`, with what a power cut of this seed left, or None: with all that was written."""

    seed: int | None


class PowerOff(msgspec.Struct, frozen=True, tag=True):
    """Do and answer nothing any more, from the operation after this many on."""

    after: int = 0


class Unplug(msgspec.Struct, frozen=True, tag=True):
    """Let every process that waits for the disk go, with an error; the power must be off."""


class SetFaults(msgspec.Struct, frozen=True, tag=True):
    """Let these be all faults."""

    faults: list[Fault]


class SetRoom(msgspec.Struct, frozen=True, tag=True):
    """Let it hold so many bytes at most, None: any; `more` counts from what it holds now."""

    room_bytes: int | None
    more: bool = False


class Ask(msgspec.Struct, frozen=True, tag=True):
    """Say how it stands."""


Order = PowerOn | PowerOff | Unplug | SetFaults | SetRoom | Ask


class DiskState(msgspec.Struct, frozen=True):
    """How the disk stands."""

    is_off: bool
    operation_count: int
    """Operations that changed or flushed something."""
    used_bytes: int
    befallen: dict[str, int]
    cut: CutReport | None = None
    """What the last power cut did."""
    refusal: str = ""
    """Why an order can't be followed."""


class DiskProcess:
    """The loop, and what it holds."""

    def __init__(self, mount_point: Path, seed: int) -> None:
        self._mount_point = mount_point
        self._tree = Tree()
        self._faults = Faults(seed)
        self._requests = Requests(self._tree, self._faults, seed)
        self._chance = Random(seed)
        self._device = -1
        self._is_mounted = False
        self._is_off = True
        self._off_at: int | None = None
        self._cut: CutReport | None = None
        self._waiting: list[tuple[float, int, Request, int]] = []
        """Requests that are slow: when they are due, a number, what they ask, how they fail."""
        self._wait_count = 0
        self._orders = b""
        self._decoder = msgspec.json.Decoder(Order)

    def run(self) -> None:
        """Serve until standard input ends."""
        try:
            while self._turn():
                pass
        finally:
            self._leave()

    def _turn(self) -> bool:
        poll = select.poll()
        poll.register(0, select.POLLIN)
        if self._device >= 0 and not self._is_off:
            poll.register(self._device, select.POLLIN)
        due = self._waiting[0][0] if self._waiting and not self._is_off else None
        wait_ms = None if due is None else max(0.0, (due - time.monotonic()) * 1000)
        ready = {descriptor for descriptor, _ in poll.poll(wait_ms)}
        if 0 in ready and not self._hear():
            return False
        if self._device in ready and not self._is_off:
            self._serve()
        self._do_what_is_due()
        return True

    # The kernel's requests

    def _serve(self) -> None:
        while not self._is_off:
            try:
                data = os.read(self._device, REQUEST_BYTES_MAX)
            except OSError as error:
                if error.errno == errno.ENODEV:  # Somebody unmounted it.
                    self._leave()
                if error.errno in (errno.EAGAIN, errno.ENODEV):
                    return
                if error.errno in (errno.ENOENT, errno.EINTR):
                    continue
                raise
            request = Requests.parse(data)
            fault, delay_seconds = self._meet_faults(request)
            if delay_seconds:
                self._wait_count += 1
                heapq.heappush(self._waiting, (time.monotonic() + delay_seconds, self._wait_count, request, fault))
            else:
                self._do(request, fault)

    def _meet_faults(self, request: Request) -> tuple[int, float]:
        try:
            return self._requests.meet_faults(request)
        except OSError:
            return 0, 0.0  # Nothing stands there: that is what the answer will say.

    def _do_what_is_due(self) -> None:
        while self._waiting and not self._is_off and self._waiting[0][0] <= time.monotonic():
            _, _, request, fault = heapq.heappop(self._waiting)
            self._do(request, fault)

    def _do(self, request: Request, fault: int) -> None:
        is_last = self._off_at is not None and self._requests.operation_count >= self._off_at
        if is_last and self._requests.operation(request) is not None:
            # In the middle of it: done or not, nobody was told.
            if self._chance.random() < 0.5:
                self._requests.answer(request, fault)
            self._is_off = True
            return
        answer = self._requests.answer(request, fault)
        if answer is not None:
            with suppress(FileNotFoundError):  # Who asked is gone.
                os.write(self._device, answer)

    # The handle's orders

    def _hear(self) -> bool:
        read = os.read(0, 1 << 20)
        if not read:
            return False
        self._orders += read
        *lines, self._orders = self._orders.split(b"\n")
        for line in lines:
            try:
                state = self._obey(self._decoder.decode(line))
            except OSError as error:
                state = msgspec.structs.replace(self._state(), refusal=error.strerror or type(error).__name__)
            sys.stdout.buffer.write(msgspec.json.encode(state) + b"\n")
            sys.stdout.buffer.flush()
        return True

    def _obey(self, order: Order) -> DiskState:
        match order:
            case PowerOn(seed):
                self._leave()
                if seed is None:
                    self._tree.forget_all()
                else:
                    self._cut = self._tree.lose_power(seed)
                self._mount()
            case PowerOff(0):
                self._is_off = True
            case PowerOff(after):
                self._off_at = self._requests.operation_count + after
            case Unplug():
                self._is_off = True
                self._leave()
            case SetFaults(faults):
                self._faults.set(faults)
            case SetRoom(room_bytes, more):
                used = self._tree.used_bytes if more else 0
                self._tree.room_bytes = None if room_bytes is None else used + room_bytes
            case Ask():
                pass
        return self._state()

    def _state(self) -> DiskState:
        return DiskState(
            is_off=self._is_off,
            operation_count=self._requests.operation_count,
            used_bytes=self._tree.used_bytes,
            befallen=self._faults.befallen,
            cut=self._cut,
        )

    # Mounting

    def _mount(self) -> None:
        self._device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        options = f"fd={self._device},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()},allow_other"
        try:
            _call("mount", b"counterfoil", bytes(self._mount_point), b"fuse", _NOSUID | _NODEV, options.encode())
        except BaseException:
            os.close(self._device)
            self._device = -1
            raise
        self._is_mounted = True
        self._is_off = False
        self._off_at = None

    def _leave(self) -> None:
        """Let go of the mount; whoever waits for an answer gets an error."""
        self._waiting.clear()
        if self._device >= 0:
            os.close(self._device)
            self._device = -1
        if self._is_mounted:
            self._is_mounted = False
            with suppress(OSError):
                _call("umount2", bytes(self._mount_point), _DETACH)


def _call(name: str, *arguments: bytes | int) -> None:
    """A call of the C library that gives 0 or sets errno. Raises OSError."""
    function: Callable[..., int] = getattr(ctypes.CDLL(None, use_errno=True), name)
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def main() -> None:
    """Be the disk at a mount point: `python -m counterfoil.faultydisk.process MOUNT_POINT SEED`."""
    mount_point, seed = sys.argv[1:]
    # A signal to the whole group, as ^C is, must leave no mount behind; the handle ends this when it is through.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    DiskProcess(Path(mount_point), int(seed)).run()


if __name__ == "__main__":
    main()
