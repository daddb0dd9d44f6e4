from __future__ import annotations

import asyncio
import base64
import hashlib
import re

import httpx
import msgspec
import pytest

from counterfoil.children import ChildState, ChildStatus
from counterfoil.console.application import make_application
from counterfoil.console.disk import DiskFacts
from counterfoil.console.page import CONTENT_SECURITY_POLICY, status_page
from counterfoil.console.status import DestinationStatus, SourceStatus, Status, WriterStatus

STATUS = Status(
    version="0.1.0",
    at_ms=1_800_000_000_000,
    not_ready=None,
    last_group=41,
    damaged_frames=0,
    processes=(
        ChildStatus("gateway-1", ChildState.READY, 4711, 1, 1_800_000_000_000, None),
        ChildStatus("pipeline", ChildState.WAITING, None, 3, 1_800_000_000_000, "SIGKILL"),
    ),
    sources=(SourceStatus("website", accepted=123_456, new=123_000, duplicate=400, conflict=50, blocked=5, test=1),),
    destinations=(
        DestinationStatus(
            "lake",
            routed=123_003,
            delivered=122_000,
            dead=7,
            pending=991,
            oldest_pending_seconds=7_500,
            skipped=2,
            erased=3,
            cursor=40,
            state="running",
        ),
    ),
    writers=(WriterStatus(0, "00112233aabbccdd", "3@4096", "3@1024"),),
    disk=DiskFacts(
        total_bytes=100 * 2**30,
        free_bytes=3 * 2**29,
        reserve_bytes=2**30,
        used_bytes={"queue": 5 * 2**30, "ledger": 3 * 2**20, "lake": 2**13},
    ),
    oldest_group=12,
    oldest_kept_ms=1_799_000_000_000,
)


def ask(
    path: str,
    *,
    status: Status = STATUS,
    host: str = "127.0.0.1",
    headers: dict[str, str] | None = None,
    password: str | None = None,
) -> httpx.Response:
    application = make_application(
        status=lambda: status,
        not_ready=lambda: status.not_ready,
        metrics=lambda: b"counterfoil_rows_total 3\n",
        host=host,
        password_sha256="" if password is None else hashlib.sha256(password.encode()).hexdigest(),
    )

    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8081") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(get())


def cells(page: str) -> list[str]:
    return [re.sub("<[^>]+>", "", cell) for cell in re.findall(r"<td.*?</td>", page)]


def test_page_shows_the_books() -> None:
    """The page shows each source's verdicts, each destination's counts and each writer's places."""
    shown = cells(ask("/").text)
    assert shown[:7] == ["website", "123,456", "123,000", "400", "50", "5", "1"]
    assert shown[7:17] == ["lake", "running", "123,003", "122,000", "991", "2 h", "7", "2", "3", "40"]
    assert shown[17:21] == ["queue/0", "00112233aabbccdd", "3@4096", "3@1024"]
    assert shown[21:27] == ["1.5 GiB", "100.0 GiB", "1.0 GiB", "5.0 GiB", "3.0 MiB", "8 KiB"]
    assert "SIGKILL" in shown


def test_page_of_a_fresh_server_says_what_is_not_there_yet() -> None:
    """Before the first row the page says so, with no empty tables."""
    page = ask("/", status=msgspec.structs.replace(STATUS, sources=(), destinations=(), writers=(), disk=None)).text
    assert "No row has been settled yet." in page
    assert page.count("<table>") == 1


def test_page_says_why_nothing_can_be_taken() -> None:
    """When no row can be taken, the page begins with the reason."""
    page = ask("/", status=msgspec.structs.replace(STATUS, not_ready="the disk <reserve> is reached")).text
    assert "Not ready: the disk &lt;reserve&gt; is reached" in page


def test_page_runs_no_script_but_its_own() -> None:
    """The policy sent with the page allows the style and the script that stand in it, by their digests."""
    answer = ask("/")
    assert answer.headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY
    for tag in ("style", "script"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", status_page(STATUS), re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in CONTENT_SECURITY_POLICY


def test_status_is_there_as_json() -> None:
    """/api/status gives the same facts as the page, as JSON."""
    answer = ask("/api/status")
    assert msgspec.json.decode(answer.content, type=Status) == STATUS


def test_health_and_metrics() -> None:
    """/livez answers while the console lives, /readyz when a row can be taken, /metrics what is counted."""
    assert ask("/livez").status_code == 200
    assert ask("/readyz").status_code == 200
    refused = ask("/readyz", status=msgspec.structs.replace(STATUS, not_ready="gateway: no answer"))
    assert (refused.status_code, refused.text) == (503, "gateway: no answer\n")
    assert ask("/metrics").text == "counterfoil_rows_total 3\n"


@pytest.mark.parametrize(
    ("host", "asked_as", "status"),
    [
        ("127.0.0.1", "127.0.0.1:8081", 200),
        ("127.0.0.1", "localhost:8081", 200),
        ("::1", "[::1]:8081", 200),
        ("127.0.0.2", "127.0.0.2:8081", 200),
        ("127.0.0.2", "rebound.example:8081", 400),
        ("127.0.0.1", "rebound.example:8081", 400),
        ("0.0.0.0", "metrics.internal:8081", 200),
    ],
)
def test_on_loopback_only_loopback_names_are_answered(host: str, asked_as: str, status: int) -> None:
    """A console on loopback can't be read through a foreign name that resolves to loopback."""
    assert ask("/livez", host=host, headers={"Host": asked_as}).status_code == status


def basic(credentials: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(credentials.encode()).decode()}


@pytest.mark.parametrize("path", ["/", "/api/status", "/metrics", "/nowhere"])
def test_with_a_password_nothing_is_shown_without_it(path: str) -> None:
    """Where a password is set, every path but health answers 401 and shows nothing until it is given."""
    answer = ask(path, password="open sesame")
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (
        401,
        'Basic realm="Counterfoil", charset="UTF-8"',
    )
    assert "website" not in answer.text
    assert ask(path, password="open sesame", headers=basic("anyone:open sesame")).status_code == ask(path).status_code


@pytest.mark.parametrize(
    "headers",
    [
        basic("anyone:open"),
        basic("anyone:open sesame "),
        basic("anyone:"),
        basic("open sesame"),
        {"Authorization": "Bearer " + base64.b64encode(b"anyone:open sesame").decode()},
        {"Authorization": "Basic"},
        {"Authorization": "Basic \u00fc".encode("latin-1").decode("latin-1")},
        {"Authorization": "Basic ====="},
        {"Authorization": ""},
    ],
)
def test_what_is_not_the_password_is_not_let_in(headers: dict[str, str]) -> None:
    """Another password, another scheme and what can't be read are all answered 401."""
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    assert ask("/", password="open sesame", headers=raw).status_code == 401  # type: ignore[arg-type]


def test_a_password_may_hold_any_character() -> None:
    """The password is everything behind the first colon, in UTF-8."""
    assert ask("/", password="a:b ü", headers=basic("anyone:a:b ü")).status_code == 200


def test_health_asks_for_no_password() -> None:
    """/livez and /readyz answer without the password: they say what the gateway's port says to anyone."""
    assert ask("/livez", password="open sesame").status_code == 200
    assert ask("/readyz", password="open sesame").status_code == 200
