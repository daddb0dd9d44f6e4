"""One request on its way to its answer: what it is, and how far it has come."""

from __future__ import annotations

from counterfoil.gateway.rsgi import Exchange, Headers
from counterfoil.gateway.uuid7 import uuid_text
from counterfoil.telemetry.metrics import OTHER_PATH


class Call:
    """A request. Made for each of them, so it is one object and does nothing that can wait."""

    __slots__ = (
        "body_bytes",
        "encoding",
        "exchange",
        "has_begun",
        "headers",
        "held_bytes",
        "id_text",
        "is_read",
        "length",
        "may_repeat",
        "path",
        "request_id",
        "until",
    )

    def __init__(self, headers: Headers, exchange: Exchange, request_id: bytes, until: float) -> None:
        self.headers = headers
        self.exchange = exchange
        self.request_id = request_id
        self.id_text = uuid_text(request_id)
        self.path = OTHER_PATH
        """One that the API has."""
        self.until = until
        """When it must have arrived, by the loop's clock."""
        announced = headers.get("content-length")
        self.length = int(announced) if announced is not None and announced.isdecimal() else None
        self.encoding = headers.get("content-encoding")
        self.has_begun = False
        """Its body is being read."""
        self.is_read = self.length == 0
        """Nothing of its body is left to be read."""
        self.body_bytes = 0
        """Of its body, as it was sent."""
        self.held_bytes = 0
        """What it holds of the worker's budget."""
        self.may_repeat = True
        """False once a row without an identity was given to the queue: sent again, it could be a second one."""
