"""Ports of loopback for servers that tests start: none is handed out to two processes of this machine.

A port that was found free and let go again is anybody's until the server binds it: another worker of the tests may
find it as well, the kernel may give it to an outgoing connection, and who connects to it while nobody listens may
connect to itself. So ports lie below the range from which the kernel takes them, in blocks, and a process has a block
as long as it lives: it holds an abstract socket of the block's name, which the kernel gives to one process at a time.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator

FIRST_PORT = 10_000
BLOCK_COUNT = 100
BLOCK_PORTS = 100


def free_port() -> int:
    """A port that nobody listens on, and that no other call here or in another process names while this one lives."""
    return next(_free)


def _free_ports() -> Iterator[int]:
    """All ports of one block after the other, round and round; those that were used just now are passed over."""
    held: dict[int, socket.socket] = {}
    for number in itertools.count(os.getpid()):
        block = number % BLOCK_COUNT
        if block not in held:
            name = socket.socket(socket.AF_UNIX)
            try:
                name.bind(f"\0counterfoil-tests-ports-{block}")
            except OSError:
                name.close()
                continue
            held[block] = name
        for port in range(FIRST_PORT + block * BLOCK_PORTS, FIRST_PORT + (block + 1) * BLOCK_PORTS):
            if _is_free(port):
                yield port


def _is_free(port: int) -> bool:
    with socket.socket() as tried:
        try:
            tried.bind(("", port))
        except OSError:
            return False
    return True


_free = _free_ports()
