"""The commands on a table in an object store: audit, replay and erase ask it as they ask a table on a disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import deltalake
import pytest

from tests.e2e.server import Server
from tests.e2e.test_destinations import send
from tests.object_store import ObjectStore, object_store

LOST = "row-1-7"
PERSON = "row-0-3"


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    """One object store for the tests of this module."""
    with object_store() as running:
        yield running


def test_what_the_bucket_lost_is_found_and_sent_again(make_server: Any, store: ObjectStore) -> None:
    """While the server runs: the audit names a missing row, a dry run counts it, the replay brings it back; and an
    erasure leaves none of a person's."""
    url = f"s3://{store.bucket()}/events"
    more = f"""
[[destinations]]
name = "bucket"
path = "{url}"
batch_seconds = 0.1
storage_options = {store.options_toml()}
"""
    server: Server = make_server(more=more).start()
    names = sorted(send(server, 0) + send(server, 1))
    server.settle_down()
    assert server.facts("audit")["is_balanced"]
    assert ids(url, store) == names

    deltalake.DeltaTable(url, storage_options=store.options()).delete(f"distinct_id = '{LOST}'")
    audited = server.facts("audit", status=1)
    (bucket,) = [each for each in audited["destinations"] if each["destination"] == "bucket"]
    assert (bucket["missing"], bucket["surplus"], bucket["failure"]) == (1, 0, None)
    assert [each["kind"] for each in audited["differences"]] == ["row_missing"]
    planned = server.facts("replay", "bucket", "--dry-run")
    assert (planned["compared"], planned["missing"], planned["sent"]) == (len(names), 1, 0)
    assert server.facts("replay", "bucket")["sent"] == 1
    server.settle_down()
    assert ids(url, store) == names
    assert server.facts("audit")["is_balanced"]

    assert server.facts("erase", PERSON, "--yes")["is_done"]
    assert ids(url, store) == [name for name in names if name != PERSON]
    assert server.facts("audit")["is_balanced"]


def ids(url: str, store: ObjectStore) -> list[str]:
    """The distinctIds that the table holds."""
    table = deltalake.DeltaTable(url, storage_options=store.options())
    return sorted(str(name) for name in table.to_pyarrow_table(columns=["distinct_id"])["distinct_id"].to_pylist())
