"""What browsers are told of other origins (the Fetch standard): nothing, unless origins are set.

The API is for servers, and a token in a page is everybody's. Where somebody sends from pages all the same, the origins
that may are named in the settings; no credentials of the browser are ever part of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from counterfoil.gateway.rsgi import Headers

EVERY_ORIGIN = "*"
EXPOSED_HEADERS = "retry-after, x-request-id, x-should-retry"
PREFLIGHT_SECONDS = 600


class Cors:
    """Which origins may send from pages."""

    def __init__(self, origins: Sequence[str]) -> None:
        self._allows_every = EVERY_ORIGIN in origins
        self._origins = frozenset(origin.lower() for origin in origins)

    def answer_headers(self, headers: Headers) -> list[tuple[str, str]]:
        """What goes with the answer to a request with these headers."""
        if self._allows_every:
            return [("access-control-allow-origin", EVERY_ORIGIN), ("access-control-expose-headers", EXPOSED_HEADERS)]
        origin = headers.get("origin")
        if origin is None or origin.lower() not in self._origins:
            # The answer to another origin would be another one.
            return [("vary", "origin")]
        return [
            ("access-control-allow-origin", origin),
            ("access-control-expose-headers", EXPOSED_HEADERS),
            ("vary", "origin"),
        ]

    def preflight_headers(self, headers: Headers, methods: str) -> list[tuple[str, str]]:
        """What goes with the answer to OPTIONS besides, when a page asks before it sends."""
        if headers.get("access-control-request-method") is None:
            return []
        allowed = [("access-control-allow-methods", methods), ("access-control-max-age", str(PREFLIGHT_SECONDS))]
        asked = headers.get("access-control-request-headers")
        return allowed if asked is None else [*allowed, ("access-control-allow-headers", asked)]
