"""The official SDK in any of its versions, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.e2e.server import TOKEN, WAIT_SECONDS

ROOT = Path(__file__).parents[2]
NEWEST = "2.1.0"

Call = tuple[str, dict[str, Any]]


class Sdk:
    """The SDK in one of its versions, in strict mode, called by its asynchronous client or the other."""

    def __init__(self, version: str, *, is_async: bool = False) -> None:
        self.version = version
        self._is_async = is_async
        path = "" if version == NEWEST else str(ROOT / ".sdk" / version)
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "e2e" / "sdk_calls.py")],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._read() == version
        self.every_parameter: dict[str, tuple[dict[str, Any], dict[str, Any]]] = self._read()
        """For each call, arguments with every parameter, and the JSON that they become."""

    def calls(
        self, base_url: str, *calls: Call, token: str = TOKEN, max_retries: int = 0, timeout: float = WAIT_SECONDS
    ) -> list[dict[str, Any]]:
        """What each call answered or raised."""
        asked = {
            "base_url": base_url,
            "is_async": self._is_async,
            "max_retries": max_retries,
            "timeout": timeout,
            "calls": [(name, {"token": token, **more}) for name, more in calls],
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        told: list[dict[str, Any]] = self._read()
        return told

    def close(self) -> None:
        self._process.communicate(timeout=WAIT_SECONDS)

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())
