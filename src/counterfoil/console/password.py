"""The console's password: HTTP Basic (RFC 7617) in front of everything but health.

Only its SHA-256 is known here. What is compared is the hash, in a time that does not hang on where two differ; the
user's name is not looked at. Health is open, because the gateway's port says the same to anyone.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
from base64 import b64decode

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

OPEN_PATHS = frozenset({"/livez", "/readyz"})
CHALLENGE = 'Basic realm="Counterfoil", charset="UTF-8"'


class PasswordGate:
    """Lets a request pass that has the password; others are answered 401."""

    def __init__(self, application: ASGIApp, password_sha256: str) -> None:
        self._application = application
        self._expected = bytes.fromhex(password_sha256)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI hands it over."""
        if scope["type"] == "lifespan" or scope.get("path") in OPEN_PATHS or self._has_password(scope):
            await self._application(scope, receive, send)
            return
        answer = PlainTextResponse(
            "the console asks for its password (HTTP Basic, any user name)\n", 401, {"WWW-Authenticate": CHALLENGE}
        )
        await answer(scope, receive, send)

    def _has_password(self, scope: Scope) -> bool:
        password = password_of(Headers(scope=scope).get("authorization", ""))
        if password is None:
            return False
        return hmac.compare_digest(hashlib.sha256(password).digest(), self._expected)


def password_of(authorization: str) -> bytes | None:
    """The password in an Authorization header; None when it holds none."""
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        _, colon, password = b64decode(credentials.strip(), validate=True).partition(b":")
    except (binascii.Error, ValueError):  # ValueError: characters that are not ASCII.
        return None
    return password if colon else None
