"""The running gateway does what its OpenAPI document says, tried by schemathesis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.config import SchemathesisConfig

from counterfoil import __version__
from counterfoil.contract.limits import Limits
from counterfoil.contract.openapi import openapi_document
from tests.gateway.server import TOKEN, RunningGateway

LIMITS = Limits(rows_max=5, row_bytes_max=100_000)

CONFIG = SchemathesisConfig.from_dict(
    {
        "checks": {
            # A row that breaks its schema fails alone; too many rows are a 413.
            "negative_data_rejection": {"expected-statuses": ["4xx", 207]},
            # HEAD and OPTIONS are answered and not documented.
            "unsupported_method": {"enabled": False},
        },
        "generation": {"database": "none"},
    }
)
SCHEMA = schemathesis.openapi.from_dict(openapi_document(LIMITS, __version__), config=CONFIG)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    with RunningGateway(tmp_path_factory.mktemp("gateway"), limits=LIMITS) as running:
        yield running


def with_token(body: Any) -> None:
    """A token that could be one becomes one; a time that could be one is taken out, since its window moves."""
    if isinstance(body, dict):
        token = body.get("token")
        if isinstance(token, str) and 0 < len(token.strip()) <= LIMITS.token_chars_max:
            body["token"] = TOKEN
        events = body.get("events")
        for row in [body, *(events if isinstance(events, list) else [])]:
            if isinstance(row, dict) and type(row.get("time")) in (int, float):
                row["time"] = None


@SCHEMA.parametrize()
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_what_the_document_says_holds(case: schemathesis.Case[Any], gateway: RunningGateway) -> None:
    """What it allows is accepted, what it doesn't is refused, and every answer is one that it describes."""
    with_token(case.body)
    case.call_and_validate(base_url=gateway.url)
