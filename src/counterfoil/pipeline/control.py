"""`control.sock`: orders to the running pipeline, from its owner alone.

A Unix socket in the data directory. A client sends one `Order` as a line of JSON and gets one `Answer` back, as often
as it likes. Lines are bounded, clients are few, and one that hangs is let go: settle never waits for any.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import structlog

from counterfoil.errors import PipelineUnreachable
from counterfoil.files import FILE_MODE
from counterfoil.pipeline.orders import ANSWER_SECONDS, Answer, Order, Refused

SOCKET_NAME = "control.sock"

LINE_BYTES_MAX = 4 * 1024 * 1024
"""An order of the most rows that it may have is a third of that."""

CLIENTS_MAX = 8
IDLE_SECONDS = 30.0
"""How long a client may say nothing, or not take its answer."""

_ACCEPT_SECONDS = 0.5
_PIECE_BYTES = 64 * 1024

log = structlog.get_logger()

_encode = msgspec.json.Encoder().encode
_decode_order: Callable[[bytes], Order] = msgspec.json.Decoder(Order).decode
_decode_answer: Callable[[bytes], Answer] = msgspec.json.Decoder(Answer).decode


class ControlServer:
    """Takes orders; `run` is its thread's work, and each client has a thread of its own."""

    name = "control"

    def __init__(self, directory: Path, submit: Callable[[Order], Answer]) -> None:
        """`directory` is the data directory, of which the caller holds the lock."""
        self._directory = directory
        self._submit = submit
        self._free = threading.Semaphore(CLIENTS_MAX)

    def wake(self) -> None:
        """`run` looks for itself whether it is to stop."""

    def run(self, stop: threading.Event) -> None:
        """Listen until `stop` is set."""
        try:
            listener = self._listening()
        except OSError as error:
            # Commands that write can't reach the pipeline; everything else goes on.
            log.error("control.unavailable", errno=error.errno)
            stop.wait()
            return
        try:
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    client, _ = listener.accept()
                    self._welcome(client, stop)
        finally:
            listener.close()
            (self._directory / SOCKET_NAME).unlink(missing_ok=True)

    def _listening(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # What an earlier life left: the lock of the data directory says that nobody listens there.
            (self._directory / SOCKET_NAME).unlink(missing_ok=True)
            with _address(self._directory) as address:
                listener.bind(address)
            (self._directory / SOCKET_NAME).chmod(FILE_MODE)
            listener.listen(CLIENTS_MAX)
            listener.settimeout(_ACCEPT_SECONDS)
        except BaseException:
            listener.close()
            raise
        return listener

    def _welcome(self, client: socket.socket, stop: threading.Event) -> None:
        if not self._free.acquire(blocking=False):
            client.close()
            return
        threading.Thread(target=self._serve, args=(client, stop), name="control client", daemon=True).start()

    def _serve(self, client: socket.socket, stop: threading.Event) -> None:
        try:
            client.settimeout(IDLE_SECONDS)
            for line in _lines(client):
                client.sendall(_encode(self._answer(line)) + b"\n")
                if stop.is_set():
                    return
        except OSError:
            # It hung, or went: an order that it gave is carried out all the same, and is harmless when given again.
            return
        finally:
            client.close()
            self._free.release()

    def _answer(self, line: bytes | None) -> Answer:
        if line is None:
            return Refused(f"a line of more than {LINE_BYTES_MAX} bytes")
        try:
            order = _decode_order(line)
        except msgspec.MsgspecError:
            return Refused("not an order that this pipeline understands: is it of another version?")
        return self._submit(order)


class ControlClient:
    """Gives orders to a running pipeline."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines = _lines(connection)

    @classmethod
    def connect(cls, directory: Path) -> ControlClient | None:
        """A client of the pipeline that works in a data directory; None when none listens there."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _address(directory) as address:
                connection.connect(address)
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            return None
        except OSError as error:
            connection.close()
            raise PipelineUnreachable(f"{directory / SOCKET_NAME}: {error.strerror}") from None
        connection.settimeout(2 * ANSWER_SECONDS)
        return cls(connection)

    def submit(self, order: Order) -> Answer:
        """Have an order carried out. Raises PipelineUnreachable: it may or may not have been."""
        try:
            self._connection.sendall(_encode(order) + b"\n")
            line = next(self._lines, None)
        except OSError:
            line = None
        if line is None:
            raise PipelineUnreachable
        return _decode_answer(line)

    def close(self) -> None:
        """Let go of it."""
        self._connection.close()


def _lines(connection: socket.socket) -> Iterator[bytes | None]:
    """The lines that come, without their ends; None, and nothing after it, for one that is too long."""
    kept = b""
    while True:
        line, end, rest = kept.partition(b"\n")
        if end:
            kept = rest
            yield line
            continue
        if len(kept) > LINE_BYTES_MAX:
            yield None
            return
        piece = connection.recv(_PIECE_BYTES)
        if not piece:
            return
        kept += piece


@contextlib.contextmanager
def _address(directory: Path) -> Iterator[str]:
    """Where the socket is. Its name may have some 100 bytes, and a path is often longer: so by an open directory."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET_NAME}"
    finally:
        os.close(descriptor)
