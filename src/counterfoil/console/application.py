"""The operator's port as an ASGI application: health, metrics, the page and the same state as JSON.

It stands apart from the gateway's port, so that what senders reach never shows anything of the inside. Bound to
loopback it needs no password, and a page of another site can't read it through a name that resolves to loopback,
because such a name is not among the hosts it answers to. Beyond loopback all but health asks for one (`password`).
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from counterfoil.console.page import CONTENT_SECURITY_POLICY, status_page
from counterfoil.console.password import PasswordGate
from counterfoil.console.settings import is_loopback
from counterfoil.console.status import Status

LOOPBACK = ("127.0.0.1", "[::1]", "localhost")
"""Names of this machine as a Host header has them."""


def make_application(
    *,
    status: Callable[[], Status],
    not_ready: Callable[[], str | None],
    metrics: Callable[[], bytes],
    host: str,
    password_sha256: str = "",
) -> Starlette:
    """The console's application; each callable is called on a thread, for each request that needs it.

    `host` is what is listened on. With an empty `password_sha256` no password is asked for.
    """

    def livez(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    def readyz(_: Request) -> Response:
        reason = not_ready()
        if reason is None:
            return PlainTextResponse("ok\n")
        return PlainTextResponse(reason + "\n", 503, {"Retry-After": "1"})

    def metrics_page(_: Request) -> Response:
        return Response(metrics(), media_type=CONTENT_TYPE_LATEST)

    def page(_: Request) -> Response:
        return HTMLResponse(
            status_page(status()),
            headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY, "Cache-Control": "no-store"},
        )

    def status_json(_: Request) -> Response:
        return Response(
            msgspec.json.encode(status()), media_type="application/json", headers={"Cache-Control": "no-store"}
        )

    def failed(_: Request, problem: Exception) -> Response:
        return JSONResponse({"error": type(problem).__name__}, 500)

    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts_answered(host)))]
    if password_sha256:
        middleware.append(Middleware(PasswordGate, password_sha256=password_sha256))
    return Starlette(
        routes=[
            Route("/", page),
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/metrics", metrics_page),
            Route("/api/status", status_json),
        ],
        middleware=middleware,
        exception_handlers={Exception: failed},
    )


def hosts_answered(host: str) -> tuple[str, ...]:
    """The names in a request's Host header that are answered, by the address that is listened on."""
    return (*LOOPBACK, host) if is_loopback(host) else ("*",)
