from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.server import Server, running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One real server for the tests of a module; each test sends rows of its own."""
    with running(Server(tmp_path_factory.mktemp("server"))) as started:
        yield started


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Makes servers that are not started yet, and ends those that still run after the test."""
    made: list[Server] = []

    def make(**settings: object) -> Server:
        made.append(Server(tmp_path / f"server-{len(made)}", **settings))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for server in made:
        if server.process is not None:
            server.kill()
