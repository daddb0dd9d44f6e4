"""What became of a request -> status, headers and bytes of the answer (contract.md sections 2 and 3).

The bytes of the entries of accepted rows are made once and sliced: an answer of a thousand accepted rows is one copy.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from counterfoil.contract.rejections import RequestRejected

Headers = tuple[tuple[str, str], ...]
JSON_HEADERS: Headers = (("content-type", "application/json"),)

RETRY_AFTER_SECONDS = 5
"""What an answer says when nothing better is known."""


class Answer(msgspec.Struct, frozen=True):
    """An HTTP answer; header names are in lower case, and Content-Length is the server's to add."""

    status: int
    body: bytes
    headers: Headers = JSON_HEADERS


TRACK_ACCEPTED = Answer(200, b'{"success":true}')
"""The answer to an accepted /track or /identify."""


def batch_answer(
    row_count: int,
    faults: Mapping[int, str],
    queue_failed: Collection[int] = (),
    *,
    retry_after_seconds: int = RETRY_AFTER_SECONDS,
) -> Answer:
    """The answer to a /batch of `row_count` rows: `faults` are the invalid ones by index with their messages,
    `queue_failed` the valid ones that did not become durable.

    200 when every row was accepted; 500 when rows were valid and every valid one failed in the queue; otherwise 207.
    """
    if not faults and not queue_failed:
        return Answer(200, _accepted_body(row_count))
    failed = len(faults) + len(queue_failed)
    accepted = row_count - failed
    results = _results(row_count, faults, queue_failed)
    if queue_failed and not accepted:
        head = (
            b'{"success":false,"error":"the queue took no row; send the failed rows again","retryable":true,"results":['
        )
        return Answer(500, head + results + b"]}", _retry_headers(retry_after_seconds))
    return Answer(207, b'{"success":false,"accepted":%d,"failed":%d,"results":[%b]}' % (accepted, failed, results))


def error_answer(rejected: RequestRejected) -> Answer:
    """The answer to a request that is refused as a whole."""
    body: dict[str, object] = {"success": False, "error": rejected.message}
    if rejected.limit is not None:
        body["limit"] = rejected.limit
    return Answer(rejected.status, msgspec.json.encode(body), JSON_HEADERS + rejected.headers)


def unavailable(message: str, retry_after_seconds: int = RETRY_AFTER_SECONDS) -> Answer:
    """The 500 to a request of which nothing is confirmed: the sender sends the whole of it again."""
    body = {"success": False, "error": message, "retryable": True}
    return Answer(500, msgspec.json.encode(body), _retry_headers(retry_after_seconds))


def uncertain(message: str) -> Answer:
    """The 500 to a row without an identity that may or may not be durable: a repeat could be a second event, so SDKs
    are told not to repeat it (contract.md section 7)."""
    body = {"success": False, "error": message, "retryable": False}
    return Answer(500, msgspec.json.encode(body), (*JSON_HEADERS, ("x-should-retry", "false")))


def _retry_headers(retry_after_seconds: int) -> Headers:
    # SDKs ignore 0 and more than 60.
    return (*JSON_HEADERS, ("retry-after", str(min(max(retry_after_seconds, 1), 60))))


def _accepted_body(row_count: int) -> bytes:
    _ENTRIES.reach(row_count)
    end = _ENTRIES.ends[row_count]
    return b'{"success":true,"accepted":%d,"failed":0,"results":[%b]}' % (row_count, _ENTRIES.joined[:end])


def _results(row_count: int, faults: Mapping[int, str], queue_failed: Collection[int]) -> bytes:
    _ENTRIES.reach(row_count)
    entries = _ENTRIES.entries[:row_count]
    for row_index, message in faults.items():
        entries[row_index] = b'{"index":%d,"success":false,"code":"invalid_event","message":%b}' % (
            row_index,
            msgspec.json.encode(message),
        )
    for row_index in queue_failed:
        entries[row_index] = (
            b'{"index":%d,"success":false,"code":"queue_failed",'
            b'"message":"events[%d]: the queue did not take this row; send it again"}' % (row_index, row_index)
        )
    return b",".join(entries)


class _AcceptedEntries:
    """The entries of accepted rows 0, 1, 2, …, as long as any request was."""

    def __init__(self) -> None:
        self.entries: list[bytes] = []
        self.joined = b""
        self.ends = [0]
        """Where the first n entries end in `joined`, without the comma after them."""

    def reach(self, row_count: int) -> None:
        """Make the entries of `row_count` rows, and of some more, so that growing is rare."""
        if row_count < len(self.ends):
            return
        count = max(1024, 1 << (row_count - 1).bit_length())
        self.entries = [b'{"index":%d,"success":true}' % row_index for row_index in range(count)]
        self.joined = b",".join(self.entries)
        end = -1
        self.ends = [0] + [end := end + 1 + len(entry) for entry in self.entries]


_ENTRIES = _AcceptedEntries()
