"""What a gateway worker's process is set to before it serves, and how it ends.

Memory. A body and the frames made of it are large blocks of short life. glibc raises the size from which it gives a
block back to the system whenever one is freed, up to 32 MiB, and keeps a heap for each thread; both are bounded here:
24 connections sending 14 MiB each took 191 MiB with its defaults and 132 MiB with these. Granian has an allocator of
its own, jemalloc, with an arena for each thread, which gives back what was freed only while it is used: what thousands
of connections had stays when they are gone. It reads its settings when Granian is loaded, from the environment
(`worker_environment`). To give everything back at once would cost two page faults more for each /track.

Garbage. What was imported lives as long as the process and is not looked at again; requests make so many objects that
the youngest generation would be searched every few dozen of them, for cycles that there are not: 5 % of the CPU.

The end. Granian's threads live on when its server has ended, and one that reaches for the interpreter while that is
taken down aborts the process (seen in one exit of twenty, with the status of SIGABRT). So the process ends without
taking it down.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Mapping
from typing import NoReturn

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_MMAP_BYTES = 256 * 1024
_TRIM_BYTES = 1024 * 1024
_ARENAS = 2
_YOUNG_OBJECTS = 10_000

_JEMALLOC_VARIABLE = "_RJEM_MALLOC_CONF"
_JEMALLOC_SETTINGS = "narenas:1,dirty_decay_ms:500,muzzy_decay_ms:0,background_thread:true"


def worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment that a worker's process is to be started with; what an operator set for the allocator stays."""
    return {_JEMALLOC_VARIABLE: _JEMALLOC_SETTINGS, **environment}


def tune_process() -> None:
    """Set this process up; to be called when everything was imported, before it serves."""
    # Another C library has no such call, and no such habits.
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
        mallopt(_M_ARENA_MAX, _ARENAS)
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 100)


def end_process(status: int = 0) -> NoReturn:
    """End this process now; whatever must be durable is, and nobody else holds something to be released."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)
