"""Paths and methods: what there is answers, what there isn't says so in the one error body."""

import uuid
from pathlib import Path

import httpx
import pytest

from counterfoil import __version__
from counterfoil.contract.limits import Limits
from counterfoil.contract.openapi import openapi_document
from tests.gateway.server import TOKEN, RunningGateway, batch, row

POST_PATHS = ("/api/v1/batch", "/api/v1/track", "/api/v1/identify")
GET_PATHS = ("/api/v1/limits", "/api/v1/openapi", "/livez", "/readyz")


def is_error(answer: httpx.Response) -> bool:
    body = answer.json()
    return set(body) == {"success", "error"} and body["success"] is False and isinstance(body["error"], str)


def test_an_unknown_path_is_404_and_names_the_base_path_when_it_lacks_it(gateway: RunningGateway) -> None:
    """Below /api/v1 it is unknown; elsewhere the answer says where the paths begin."""
    for path in ("/api/v1/", "/api/v1/batches", "/api/v1/batch/", "/api/v1/batch/x"):
        answer = httpx.post(gateway.url + path, content=batch(row("a")), timeout=60)
        assert (answer.status_code, is_error(answer)) == (404, True)
        assert "begin with" not in answer.json()["error"]
    for path in ("/", "/batch", "/v1/track", "/api/v1", "/api/v2/batch", "/metrics"):
        answer = httpx.post(gateway.url + path, content=batch(row("a")), timeout=60)
        assert (answer.status_code, is_error(answer)) == (404, True)
        assert "begin with /api/v1" in answer.json()["error"]
    assert gateway.rows() == []


def test_a_404_does_not_repeat_the_path(gateway: RunningGateway) -> None:
    """P6: a path can hold what a sender put into it by mistake."""
    assert "jane" not in httpx.get(f"{gateway.url}/api/v1/jane@example.org", timeout=60).text


@pytest.mark.parametrize("path", POST_PATHS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"])
def test_a_wrong_method_is_405_with_allow(gateway: RunningGateway, path: str, method: str) -> None:
    """Whatever is not POST or OPTIONS gets the methods there are."""
    answer = httpx.request(method, gateway.url + path, timeout=60)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST, OPTIONS")
    assert answer.content == b"" if method == "HEAD" else is_error(answer)


@pytest.mark.parametrize("path", GET_PATHS)
def test_what_can_be_read_takes_get_and_head(gateway: RunningGateway, path: str) -> None:
    """HEAD answers what GET would, without the body; POST is 405."""
    got, head, posted = (httpx.request(method, gateway.url + path, timeout=60) for method in ("GET", "HEAD", "POST"))
    assert got.status_code == head.status_code == 200
    assert head.content == b""
    assert head.headers["content-length"] == got.headers["content-length"] == str(len(got.content))
    assert (posted.status_code, posted.headers["allow"]) == (405, "GET, HEAD, OPTIONS")


@pytest.mark.parametrize("path", POST_PATHS + GET_PATHS)
def test_options_says_which_methods_there_are(gateway: RunningGateway, path: str) -> None:
    """204 with Allow, and nothing about other origins, which nobody configured."""
    answer = httpx.options(gateway.url + path, headers={"origin": "https://example.org"}, timeout=60)
    assert answer.status_code == 204
    assert answer.headers["allow"] == ("POST, OPTIONS" if path in POST_PATHS else "GET, HEAD, OPTIONS")
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", ["/api/v1/experiments/assignments/some-key", "/api/v1/experiments/personalization"])
def test_experiments_are_not_offered_and_not_tried_again(gateway: RunningGateway, path: str) -> None:
    """SDKs have these paths; the answer tells them not to repeat."""
    answer = httpx.post(gateway.url + path, json={"token": TOKEN}, timeout=60)
    assert (answer.status_code, is_error(answer)) == (404, True)
    assert answer.headers["x-should-retry"] == "false"


def test_every_answer_has_an_id_of_its_own(gateway: RunningGateway) -> None:
    """x-request-id is a UUIDv7, on accepted and refused requests alike."""
    answers = [
        gateway.post("/batch", batch(row("a"))),
        gateway.post("/batch", b"no"),
        gateway.post("/batch", batch(row("a"), token="unknown")),
        httpx.get(f"{gateway.url}/nowhere", timeout=60),
        httpx.options(f"{gateway.url}/api/v1/batch", timeout=60),
        httpx.get(f"{gateway.url}/livez", timeout=60),
    ]
    ids = {uuid.UUID(answer.headers["x-request-id"]) for answer in answers}
    assert len(ids) == len(answers)
    assert {found.version for found in ids} == {7}


def test_limits_tells_every_limit_with_its_value(gateway: RunningGateway) -> None:
    """The names are those of the configuration."""
    answer = httpx.get(f"{gateway.url}/api/v1/limits", timeout=60)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == Limits().model_dump()


def test_a_query_string_changes_nothing(gateway: RunningGateway) -> None:
    """What stands behind the path is not looked at."""
    assert gateway.post("/batch?a=b", batch(row("a"))).status_code == 200


@pytest.mark.parametrize(
    ("content_type", "is_taken"),
    [
        ("application/json", True),
        ("application/json; charset=utf-8", True),
        ("Application/JSON;x=y", True),
        ("application/json-patch+json", False),
        ("text/plain", False),
        ("application/x-www-form-urlencoded", False),
        ("", False),
    ],
)
def test_only_json_is_taken(gateway: RunningGateway, content_type: str, is_taken: bool) -> None:
    """Parameters and case don't matter; anything else is 415, before the body is looked at."""
    good = gateway.post("/batch", batch(row("a")), content_type=content_type)
    bad = gateway.post("/batch", b"no json", content_type=content_type)
    assert (good.status_code, bad.status_code) == ((200, 400) if is_taken else (415, 415))


def test_a_missing_content_type_is_415(gateway: RunningGateway) -> None:
    """None is not JSON either."""
    answer = httpx.post(f"{gateway.url}/api/v1/batch", content=batch(row("a")), timeout=60)
    assert (answer.status_code, is_error(answer)) == (415, True)


def test_openapi_is_the_document_of_this_server(gateway: RunningGateway) -> None:
    """With the limits that hold now."""
    answer = httpx.get(f"{gateway.url}/api/v1/openapi", timeout=60)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == openapi_document(Limits(), __version__)


JSON = {"content-type": "application/json"}
ORDERED: list[tuple[str, str, str, dict[str, str], bytes, int]] = [
    ("path before method", "PUT", "/api/v1/nowhere", {}, b"", 404),
    ("method before content type", "PUT", "/api/v1/batch", {"content-type": "text/plain"}, b"x", 405),
    ("content type before size", "POST", "/api/v1/batch", {"content-type": "text/plain"}, b" " * 2000, 415),
    ("size before encoding", "POST", "/api/v1/batch", JSON | {"content-encoding": "lzma"}, b" " * 2000, 413),
    ("encoding before JSON", "POST", "/api/v1/batch", JSON | {"content-encoding": "lzma"}, b"no JSON", 415),
    ("JSON before shape", "POST", "/api/v1/batch", JSON, b'{"token": 5, "events": [}', 400),
    ("shape before token", "POST", "/api/v1/batch", JSON, b'{"token": "unknown", "events": []}', 400),
    ("number of rows before token", "POST", "/api/v1/batch", JSON, batch({}, {}, {}, token="unknown"), 413),
    ("token before rows", "POST", "/api/v1/batch", JSON, batch({}, {}, token="unknown"), 401),
    ("token before the row", "POST", "/api/v1/track", JSON, b'{"token": "unknown", "event": 5}', 401),
]


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status"), [case[1:] for case in ORDERED], ids=[case[0] for case in ORDERED]
)
def test_what_is_wrong_in_two_ways_is_told_by_the_first(
    tmp_path: Path, method: str, path: str, headers: dict[str, str], body: bytes, status: int
) -> None:
    """The contract's order: path, method, content type, size, encoding, JSON, shape, token, rows."""
    with RunningGateway(tmp_path, limits=Limits(body_bytes_max=1024, rows_max=2)) as gateway:
        answer = httpx.request(method, gateway.url + path, headers=headers, content=body, timeout=60)
        assert answer.status_code == status
        assert gateway.frames() == []
