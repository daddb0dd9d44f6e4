"""Sources and limits change while a worker runs, and no request is lost by it."""

import threading
from pathlib import Path

import httpx
import pytest

from counterfoil.contract.limits import Limits
from counterfoil.errors import SettingsInvalid
from counterfoil.sources import SourceSettings, token_sha256
from tests.gateway.server import SOURCE, TOKEN, RunningGateway, batch, row


def with_tokens(*tokens: str) -> SourceSettings:
    return SourceSettings(name="website", token_sha256=tuple(map(token_sha256, tokens)))


def test_a_token_is_rotated_without_a_gap(tmp_path: Path) -> None:
    """While senders go on with the old token, then with either, then with the new one, each request is taken."""
    refused: list[int] = []
    token = "old"
    stop = threading.Event()

    with RunningGateway(tmp_path, sources=[with_tokens("old")]) as gateway:

        def send() -> None:
            with httpx.Client(timeout=60, headers={"content-type": "application/json"}) as client:
                while not stop.is_set():
                    body = batch(row("a"), token=token)
                    answer = client.post(f"{gateway.url}/api/v1/batch", content=body)
                    if answer.status_code != 200:
                        refused.append(answer.status_code)

        senders = [threading.Thread(target=send) for _ in range(2)]
        for sender in senders:
            sender.start()
        gateway.reload([with_tokens("old", "new")])
        token = "new"
        stop.set()
        for sender in senders:
            sender.join()
        gateway.reload([with_tokens("new")])
        assert gateway.post("/batch", batch(row("a"), token="new")).status_code == 200
        assert gateway.post("/batch", batch(row("a"), token="old")).status_code == 401
    assert refused == []


def test_limits_and_allowlists_change_for_later_requests(gateway: RunningGateway) -> None:
    """Also those that are held to other limits by the body's size."""
    body = batch(*(row(str(index)) for index in range(5)))
    assert gateway.post("/batch", body).status_code == 200
    blocking = SOURCE.model_copy(update={"allowed_events": ("Other",)})
    gateway.reload([blocking], Limits(rows_max=4))
    assert gateway.post("/batch", body).status_code == 413
    assert httpx.get(f"{gateway.url}/api/v1/limits", timeout=60).json()["rows_max"] == 4
    gateway.reload([blocking], Limits(body_bytes_max=1024))
    assert gateway.post("/batch", batch(row("a", fill="x" * 1100))).status_code == 413
    assert gateway.post("/batch", batch(row("b"))).status_code == 200
    assert [int(frame.facts.flags[0]) for frame in gateway.frames()] == [0, 2]


def test_what_can_not_be_used_changes_nothing(gateway: RunningGateway) -> None:
    """Neither sources nor limits."""
    with pytest.raises(SettingsInvalid):
        gateway.reload([SOURCE, SOURCE], Limits(rows_max=1))
    assert gateway.post("/batch", batch(row("a"), row("b"), token=TOKEN)).status_code == 200
