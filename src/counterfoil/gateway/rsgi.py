"""What Granian hands to an RSGI application, as far as the gateway uses it."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol


class Headers(Protocol):
    """A request's headers; names are given in lower case, values that are not visible ASCII count as absent."""

    def get(self, key: str, default: str | None = None, /) -> str | None: ...


class Scope(Protocol):
    """What a request is."""

    @property
    def method(self) -> str: ...

    @property
    def path(self) -> str:
        """Percent-decoded."""
        ...

    @property
    def http_version(self) -> str: ...

    @property
    def headers(self) -> Headers:
        """A copy at every access."""
        ...


class Exchange(Protocol):
    """A request's body and its answer."""

    def __aiter__(self) -> Exchange:
        """Begin to read the body; once at most."""
        ...

    def __anext__(self) -> Awaitable[bytes]:
        """The next piece; an empty one before the end, and also where the connection broke."""
        ...

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """Answer; whatever is called after that has no effect."""
        ...
