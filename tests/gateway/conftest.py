"""A gateway for each test that asks for one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.server import RunningGateway


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[RunningGateway]:
    """A gateway with the usual settings."""
    with RunningGateway(tmp_path) as running:
        yield running
