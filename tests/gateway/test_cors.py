"""Other origins: nothing is said of them unless they are set, and then no more than is needed."""

from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from counterfoil.gateway.settings import GatewaySettings
from tests.gateway.server import RunningGateway, batch, row

ORIGIN = "https://shop.example.org"
ASKING = {
    "origin": ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "content-type,x-stainless-lang",
}


def told(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("access-control")}


def test_by_default_no_page_may_send(gateway: RunningGateway) -> None:
    """Neither the question nor the request itself gets a word of it."""
    assert told(httpx.options(f"{gateway.url}/api/v1/track", headers=ASKING, timeout=60)) == {}
    answer = gateway.post("/batch", batch(row("a")), origin=ORIGIN)
    assert told(answer) == {}
    assert "vary" not in answer.headers


def test_an_origin_that_is_set_may_send(tmp_path: Path) -> None:
    """The question is answered with methods and headers; answers can be read, refusals as well."""
    with RunningGateway(tmp_path, cors_origins=(ORIGIN, "http://localhost:3000")) as gateway:
        asked = httpx.options(f"{gateway.url}/api/v1/track", headers=ASKING, timeout=60)
        assert asked.status_code == 204
        assert asked.headers["access-control-allow-origin"] == ORIGIN
        assert asked.headers["access-control-allow-methods"] == "POST, OPTIONS"
        assert asked.headers["access-control-allow-headers"] == "content-type,x-stainless-lang"
        for body in (batch(row("a")), b"no"):
            answer = gateway.post("/batch", body, origin=ORIGIN)
            assert answer.headers["access-control-allow-origin"] == ORIGIN
            assert "x-request-id" in answer.headers["access-control-expose-headers"]
            assert answer.headers["vary"] == "origin"
            assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("origin", ["https://example.org", "http://shop.example.org", "null", f"{ORIGIN}.evil.org"])
def test_another_origin_may_not(tmp_path: Path, origin: str) -> None:
    """Whole origins are compared, scheme and port included."""
    with RunningGateway(tmp_path, cors_origins=(ORIGIN,)) as gateway:
        answer = gateway.post("/batch", batch(row("a")), origin=origin)
        assert told(answer) == {}
        assert answer.headers["vary"] == "origin"
        asked = httpx.options(f"{gateway.url}/api/v1/track", headers=ASKING | {"origin": origin}, timeout=60)
        assert "access-control-allow-origin" not in asked.headers


def test_every_origin_may_when_so_set(tmp_path: Path) -> None:
    """A star stands for all."""
    with RunningGateway(tmp_path, cors_origins=("*",)) as gateway:
        answer = gateway.post("/batch", batch(row("a")), origin="https://anywhere.example")
        assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("origin", ["example.org", "https://example.org/path", "ftp://x", "https://", ""])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    """A setting that could never fit is not taken."""
    with pytest.raises(ValidationError):
        GatewaySettings(cors_origins=(origin,))
