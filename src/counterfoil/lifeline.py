"""A process's line to the supervisor that started it, and back.

The line is a pair of sockets; the child finds its end as standard input. What goes over it is lines:

    down  first the process's settings as JSON, so that none stand on a command line; later lines are news for it
    up    `Ready`, once it does its work, or `Refused`, when it can't start and only an operator can help: then nothing
          starts; `Held`, when it can't do its work until somebody acts, and the others go on without it;
          `Condition`, whenever that of a part of it changes

When the line ends, the supervisor has asked the process to stop, or is no more; for the process it is the same. So a
SIGKILL of the supervisor leaves no orphan: the kernel closes the line. A process that does not end by itself within
`GRACE_SECONDS` is ended from within, because nobody may be left to do it from outside.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

GRACE_SECONDS = 8.0
"""Less than the time for which a new life waits for what an old one holds."""

EXIT_STUCK = 70


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The process does its work now."""


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The process can't start here; `message` is one line for the operator."""

    message: str


class Held(msgspec.Struct, frozen=True, tag="held"):
    """The process does nothing until an operator has acted; `message` is one line for them. It ends after a while."""

    message: str


class Condition(msgspec.Struct, frozen=True, tag="condition"):
    """How a part of the process is now; names and states are our own words."""

    part: str
    state: str


Message = Ready | Refused | Held | Condition


class Lifeline:
    """The child's end of the line."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._sending = threading.Lock()
        self._lines = end.makefile("rb")

    @classmethod
    def of_stdin(cls) -> Lifeline:
        """The line that came as standard input; leaves nothing there for others to read."""
        end = socket.socket(fileno=os.dup(0))
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        return cls(end)

    def settings(self) -> bytes:
        """The process's settings; to be read once, before anything else. Ends the process when the line has ended."""
        line = self._lines.readline()
        if not line.endswith(b"\n"):
            sys.exit(0)
        return line[:-1]

    def ready(self) -> None:
        """Tell that the process does its work now."""
        self._send(Ready())

    def refuse(self, message: str) -> None:
        """Tell why the process can't start; it ends itself after that."""
        self._send(Refused(message))

    def hold(self, message: str) -> None:
        """Tell what somebody must do before the process can do its work."""
        self._send(Held(message))

    def condition(self, part: str, state: str) -> None:
        """Tell how a part of the process is from now on; from any thread."""
        self._send(Condition(part, state))

    def watch(
        self,
        stop: Callable[[], None],
        news: Callable[[bytes], None] = lambda _: None,
        *,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        """Call `stop` when the line ends or SIGTERM comes, and `news` with each line before that.

        Both are called on a thread of the line's own. From the main thread only, because of SIGTERM.
        """
        once = threading.Event()

        def end() -> None:
            if not once.is_set():
                once.set()
                stop()
                time.sleep(grace_seconds)
                os._exit(EXIT_STUCK)

        def follow() -> None:
            for line in self._read_on():
                news(line)
            end()

        def terminated(*_: Any) -> None:
            threading.Thread(target=end, name="lifeline-term", daemon=True).start()

        signal.signal(signal.SIGTERM, terminated)
        threading.Thread(target=follow, name="lifeline", daemon=True).start()

    def _read_on(self) -> Iterator[bytes]:
        try:
            for line in self._lines:
                if line.endswith(b"\n"):
                    yield line[:-1]
        except OSError:
            return

    def _send(self, message: Message) -> None:
        # The supervisor may be gone; `watch` sees it too.
        with self._sending, contextlib.suppress(OSError):
            self._end.sendall(msgspec.json.encode(message) + b"\n")
