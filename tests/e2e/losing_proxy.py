"""A TCP proxy that loses answers: the server has given them, and the client never hears of it."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from typing import Literal


class LosingProxy(socketserver.ThreadingTCPServer):
    """Started when entered. What `lose` says is lost; after that everything passes."""

    daemon_threads = True
    block_on_close = True

    def __init__(self, target_port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.target_port = target_port
        self.lost_count = 0
        self._to_lose = 0
        self._how: Literal["cut", "held"] = "cut"
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,))

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def __enter__(self) -> LosingProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def lose(self, count: int, how: Literal["cut", "held"] = "cut") -> None:
        """Lose the next answers: the connection is cut in their place, or stays open and silent."""
        with self._lock:
            self._to_lose, self._how = count, how

    def fate(self) -> Literal["passed", "cut", "held"]:
        """What becomes of an answer that has just come."""
        with self._lock:
            if not self._to_lose:
                return "passed"
            self._to_lose -= 1
            self.lost_count += 1
            return self._how


class _Passing(socketserver.BaseRequestHandler):
    """One connection; what the client says is passed on by a thread of its own."""

    server: LosingProxy

    def handle(self) -> None:
        client: socket.socket = self.request
        with socket.create_connection(("127.0.0.1", self.server.target_port)) as target:
            asking = threading.Thread(target=_pass_on, args=(client, target))
            asking.start()
            with contextlib.suppress(OSError):
                self._answer(client, target)
            for connection in (client, target):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            asking.join()

    def _answer(self, client: socket.socket, target: socket.socket) -> None:
        """Pass on what the server says; what is held back is so until the client has gone."""
        while said := target.recv(1 << 16):
            fate = self.server.fate()
            if fate == "cut":
                return
            if fate == "passed":
                client.sendall(said)


def _pass_on(client: socket.socket, target: socket.socket) -> None:
    """Pass on what the client says, its end too."""
    with contextlib.suppress(OSError):
        while said := client.recv(1 << 16):
            target.sendall(said)
        target.shutdown(socket.SHUT_WR)
