"""Which operation fails or waits, and how."""

from __future__ import annotations

import re
from enum import StrEnum
from random import Random

import msgspec


class Operation(StrEnum):
    """What a fault can befall."""

    WRITE = "write"
    FLUSH = "flush"
    """fsync and fdatasync of a file."""
    FLUSH_DIRECTORY = "flush_directory"
    CREATE = "create"
    """A new file or directory, or another name of one."""
    RENAME = "rename"
    REMOVE = "remove"
    TRUNCATE = "truncate"


class Fault(msgspec.Struct, frozen=True):
    """What befalls operations from now on."""

    operations: frozenset[Operation]
    errno: int = 0
    """What the operation answers; 0: it is done."""
    delay_seconds: float = 0.0
    """How long it takes longer."""
    share: float = 1.0
    """How often, of those that it could befall."""
    path: str = ""
    """A regular expression that the path must hold, from the mount point on."""
    after: int = 0
    """How many pass by first."""
    times: int | None = None
    """How often at most."""


class Faults:
    """The faults that are set, and how often each befell something."""

    def __init__(self, seed: int) -> None:
        self._chance = Random(seed)
        self._faults: list[_Counted] = []
        self.befallen: dict[str, int] = {}
        """How often something failed or waited, by operation and how."""

    def set(self, faults: list[Fault]) -> None:
        """Let these be all faults."""
        self._faults = [_Counted(fault) for fault in faults]

    def meet(self, operation: Operation, path: str) -> tuple[int, float]:
        """The errno and the delay that befall an operation now; 0 and 0: none."""
        number, delay_seconds = 0, 0.0
        for counted in self._faults:
            if counted.befalls(operation, path, self._chance):
                fault = counted.fault
                how = f"{operation} errno {fault.errno}" if fault.errno else f"{operation} slow"
                self.befallen[how] = self.befallen.get(how, 0) + 1
                number = number or fault.errno
                delay_seconds += fault.delay_seconds
        return number, delay_seconds


class _Counted:
    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self._pattern = re.compile(fault.path)
        self._to_pass = fault.after
        self._left = fault.times

    def befalls(self, operation: Operation, path: str, chance: Random) -> bool:
        fault = self.fault
        if operation not in fault.operations or self._left == 0 or not self._pattern.search(path):
            return False
        if self._to_pass:
            self._to_pass -= 1
            return False
        if chance.random() >= fault.share:
            return False
        if self._left is not None:
            self._left -= 1
        return True
