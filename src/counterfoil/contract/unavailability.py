"""Why nothing of a request is confirmed (contract.md section 2): a 500, and when to try again.

Each function is one reason, worded here and nowhere else; docs/reference/api.md lists them with their docstrings.
"""

from __future__ import annotations

from counterfoil.contract.answers import Answer, unavailable, uncertain

_SOON_SECONDS = 1
_DISK_SECONDS = 60


def server_full() -> Answer:
    """This worker holds as many bytes of requests as it may (`gateway.bodies_bytes_max`)."""
    return unavailable("the server holds as many requests as it can; send the request again", _SOON_SECONDS)


def server_busy() -> Answer:
    """More requests came to this worker than it can judge in good time; it refuses early what it would answer late."""
    return unavailable("more requests came than the server can take; send the request again", _SOON_SECONDS)


def server_stopping() -> Answer:
    """The server stops, and did not wait for the rest of the request."""
    return unavailable("the server is stopping; send the request again", _SOON_SECONDS)


def disk_full() -> Answer:
    """The disk has reached its reserve (`queue.reserve_bytes`); the operator must make room."""
    return unavailable("the queue takes no rows until there is room; send the request again", _DISK_SECONDS)


def queue_refusing() -> Answer:
    """The queue takes no rows just now."""
    return unavailable("the queue takes no rows now; send the request again")


def nothing_confirmed() -> Answer:
    """Writing or flushing failed, or something unforeseen happened, which the operator finds in the log."""
    return unavailable("nothing of the request is confirmed; send it again")


def row_uncertain() -> Answer:
    """The same, of a /track without a distinctId: a repeat could be a second row, so SDKs are told not to repeat it."""
    return uncertain("the row may or may not be kept; without a distinctId, sent again it could be a second one")
