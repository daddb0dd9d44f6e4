"""A sender of rows over raw HTTP; whatever sends otherwise has the same two methods."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol

import httpx

from counterfoil.selftest.answers import Answer, read_batch_answer, read_track_answer, silence

TIMEOUT_SECONDS = 30.0


class Sender(Protocol):
    """Sends one request and says what was answered; it never repeats by itself."""

    def send(self, rows: Sequence[dict[str, Any]], *, by_track: bool = False) -> Answer:
        """Send these rows as one request: to /batch, or a single one to /track. A broken connection is an answer."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


class HttpSender:
    """A `Sender` with one connection, over plain HTTP/1.1 requests."""

    def __init__(self, url: str, token: str, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        """`url` ends with /api/v1."""
        self._url = url
        self._token = token
        self._client = httpx.Client(timeout=timeout_seconds, trust_env=False)

    def send(self, rows: Sequence[dict[str, Any]], *, by_track: bool = False) -> Answer:
        """See `Sender.send`."""
        assert not by_track or len(rows) == 1, "/track takes one row"
        document = {**rows[0], "token": self._token} if by_track else {"token": self._token, "events": rows}
        try:
            answer = self._client.post(
                f"{self._url}/{'track' if by_track else 'batch'}",
                content=json.dumps(document, ensure_ascii=False).encode(),
                headers={"content-type": "application/json"},
            )
        except httpx.RequestError:
            return silence(len(rows))
        if by_track:
            return read_track_answer(answer.status_code, answer.headers, answer.content)
        return read_batch_answer(answer.status_code, answer.headers, answer.content, len(rows))

    def close(self) -> None:
        """See `Sender.close`."""
        self._client.close()
