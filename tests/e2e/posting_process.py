"""The process behind a `PostingReceiver`: it imports little, so that it is there again at once.

It appends each request's body to a file, one a line, before it answers; now and then it takes a request and answers
nothing, or answers 503 or 429 and takes nothing, as receivers do.
"""

from __future__ import annotations

import os
import random
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TROUBLE = 0.1


def main(port: int, path: Path) -> None:
    """Receive until it is killed."""
    chance = random.Random()
    # A life before this one may have been killed in the middle of a line.
    held = path.read_bytes() if path.exists() else b""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.truncate(path, held.rfind(b"\n") + 1)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._reply(200)

        def do_POST(self) -> None:
            body_bytes = int(self.headers["content-length"])
            body = self.rfile.read(body_bytes)
            if len(body) < body_bytes:
                # Who sent it was killed meanwhile: a request that did not arrive is nothing that was taken.
                self.close_connection = True
                return
            trouble = chance.choice(("cut", "503", "429")) if chance.random() < TROUBLE else ""
            if trouble in ("503", "429"):
                self._reply(int(trouble))
                return
            line = body + b"\n"
            assert os.write(file, line) == len(line)
            if trouble == "cut":
                self.close_connection = True
                return
            self._reply(204)

        def _reply(self, status: int) -> None:
            self.send_response(status)
            if status == 429:
                self.send_header("retry-after", "1")
            if status != 204:
                self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            return

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
