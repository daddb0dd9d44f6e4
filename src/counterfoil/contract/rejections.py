"""What is wrong with a request as a whole (contract.md section 3); no row of it was accepted.

Each function is one reason, worded here and nowhere else. No message holds a value that the sender sent.
"""

from __future__ import annotations

from collections.abc import Iterable

from counterfoil.contract.limits import Limits


class RequestRejected(Exception):
    """The request as a whole is refused; `answers.error_answer` says so to the sender."""

    def __init__(
        self, status: int, message: str, *, limit: int | None = None, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.limit = limit
        """With a 413: the limit that was exceeded, in the unit that `message` names."""
        self.headers = headers


def not_json() -> RequestRejected:
    return RequestRejected(400, "the body is not JSON in UTF-8")


def not_an_object() -> RequestRejected:
    return RequestRejected(400, "the body is not a JSON object")


def token_invalid(limits: Limits, found: str) -> RequestRejected:
    return RequestRejected(400, f"token: expected a string of 1 to {limits.token_chars_max} characters, found {found}")


def events_invalid(limits: Limits, found: str) -> RequestRejected:
    return RequestRejected(400, f"events: expected an array of 1 to {limits.rows_max} rows, found {found}")


def row_invalid(message: str) -> RequestRejected:
    """The one row of a /track or /identify is invalid; `message` is its fault."""
    return RequestRejected(400, message)


def body_incomplete() -> RequestRejected:
    return RequestRejected(400, "the body is shorter than its Content-Length")


def body_damaged(encoding: str) -> RequestRejected:
    """`encoding` is one that we speak, not what the sender wrote."""
    return RequestRejected(400, f"the body can't be decompressed as {encoding}")


def token_unknown() -> RequestRejected:
    return RequestRejected(401, "the token is unknown or revoked")


def path_unknown(is_outside_base: bool) -> RequestRejected:
    """`is_outside_base`: the path does not begin with /api/v1, a newcomer's first mistake."""
    if is_outside_base:
        return RequestRejected(404, "no such path: the paths of this API begin with /api/v1")
    return RequestRejected(404, "no such path")


def path_not_offered() -> RequestRejected:
    """A path that the SDKs have and this server does not (contract.md section 1)."""
    return RequestRejected(404, "experiments are not offered by this server", headers=(("x-should-retry", "false"),))


def method_wrong(allowed: Iterable[str]) -> RequestRejected:
    methods = ", ".join(allowed)
    return RequestRejected(405, f"this path takes {methods}", headers=(("allow", methods),))


def too_late(limits: Limits) -> RequestRejected:
    return RequestRejected(
        408,
        f"the request did not arrive within {limits.request_seconds_max} seconds",
        headers=(("connection", "close"),),
    )


def body_too_large(limits: Limits, *, is_inflated: bool = False) -> RequestRejected:
    what = "the decompressed body" if is_inflated else "the body"
    limit = limits.body_bytes_max
    return RequestRejected(413, f"{what} is larger than {limit} bytes", limit=limit)


def rows_too_many(limits: Limits) -> RequestRejected:
    limit = limits.rows_max
    return RequestRejected(413, f"the request holds more than {limit} rows", limit=limit)


def content_type_wrong() -> RequestRejected:
    return RequestRejected(415, "expected a Content-Type of application/json")


def content_encoding_unknown(spoken: Iterable[str]) -> RequestRejected:
    return RequestRejected(415, f"expected a Content-Encoding of {', '.join(spoken)}, or none")


def rate_limited(retry_after_seconds: int) -> RequestRejected:
    """The source sends more than it may; `retry_after_seconds` from 1 to 60."""
    return RequestRejected(
        429, "the source is over its rate limit", headers=(("retry-after", str(min(max(retry_after_seconds, 1), 60))),)
    )
