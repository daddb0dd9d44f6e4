"""A real HTTP object store of the tests' own (moto's S3), in a process of its own, meddled with by tests.

In a process of its own because some of deltalake's calls stop every thread of the caller's until they are answered.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from tests.e2e.server import until
from tests.ports import free_port

RULES = "/_rules"
HOLD_SECONDS = 60
"""Not for ever: who waits with every thread of his process can't say that it is enough."""


class ObjectStore:
    """S3 on a port of its own."""

    def __init__(self) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "tests.object_store", str(self.port)]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        until(self._is_up, "the object store answers")

    def _is_up(self) -> bool | None:
        try:
            self.meddle()
        except OSError:
            return None
        return True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def bucket(self) -> str:
        """A new bucket; its name."""
        name = f"bucket-{uuid4().hex}"
        self._ask("PUT", f"/{name}")
        return name

    def copy(self, source: str, target: str) -> None:
        """Copy an object; paths begin with the bucket."""
        self._ask("PUT", f"/{target}", headers={"x-amz-copy-source": f"/{source}"})

    def meddle(self, **rules: Any) -> None:
        """From now on: `kill` a process at the `nth` PUT whose path ends with `suffix`, `when` "before" or "after" it
        is carried out; with `holds` true carry out no PUT until meddled with anew, or for HOLD_SECONDS; with
        `knows_keys` false know no key."""
        self._ask("POST", RULES, json.dumps(rules).encode())

    def requests(self) -> list[str]:
        """Method and path of each request since the last `meddle`, as they came in."""
        found: list[str] = json.loads(self._ask("GET", RULES))
        return found

    def options(self, **more: str) -> dict[str, str]:
        """`storage_options` that reach it."""
        return {
            "aws_endpoint_url": self.url,
            "aws_allow_http": "true",
            "aws_region": "us-east-1",
            "aws_access_key_id": "key-of-the-test",
            "aws_secret_access_key": "secret-of-the-test",
            **more,
        }

    def options_toml(self) -> str:
        """The same as a table of the configuration, on one line."""
        return "{" + ", ".join(f"{name} = {json.dumps(text)}" for name, text in self.options().items()) + "}"

    def _ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> bytes:
        request = urllib.request.Request(f"{self.url}{path}", data=body, method=method, headers=headers or {})
        with urllib.request.urlopen(request, timeout=60) as answer:
            read: bytes = answer.read()
            return read

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A store that runs until the end of the block."""
    store = ObjectStore()
    try:
        yield store
    finally:
        store.close()


class _Meddling:
    """What stands before moto in the store's process."""

    def __init__(self, application: Any) -> None:
        self._application = application
        self._rules: dict[str, Any] = {}
        self._requests: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if path == RULES:
            return self._command(method, environ, start_response)
        self._requests.append(f"{method} {path}")
        is_meant = method == "PUT" and path.endswith(self._rules.get("suffix", ""))
        if is_meant:
            self._hold()
            self._end("before")
        body: Iterable[bytes] = list(self._application(environ, start_response))
        if is_meant:
            self._end("after")
        return body

    def _command(self, method: str, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        from moto import settings

        if method == "POST":
            self._rules = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
            self._requests = []
            settings.INITIAL_NO_AUTH_ACTION_COUNT = float("inf") if self._rules.get("knows_keys", True) else 0
        start_response("200 OK", [("content-type", "application/json")])
        return [json.dumps(self._requests).encode()]

    def _hold(self) -> None:
        until = time.monotonic() + HOLD_SECONDS
        while self._rules.get("holds") and time.monotonic() < until:
            time.sleep(0.01)

    def _end(self, when: str) -> None:
        with self._lock:
            if self._rules.get("when") == when:
                self._rules["nth"] -= 1
                if self._rules["nth"] == 0:
                    os.kill(self._rules["kill"], signal.SIGKILL)


def main() -> None:
    """Serve until killed."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = _Meddling(DomainDispatcherApplication(create_backend_app))
    make_server("127.0.0.1", int(sys.argv[1]), application, threaded=True).serve_forever()


if __name__ == "__main__":
    main()
