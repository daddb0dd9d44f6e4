"""The official SDK as a sender of the checker: what its users send, and what it says of answers in strict mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ours_privacy import APIConnectionError, APIResponseValidationError, APIStatusError, OursPrivacy

from counterfoil.selftest.answers import Answer, RowAnswer, read_batch_answer, read_track_answer, silence

_SDK_NAMES = {
    "distinctId": "distinct_id",
    "userId": "user_id",
    "externalId": "external_id",
    "eventProperties": "event_properties",
    "userProperties": "user_properties",
    "defaultProperties": "default_properties",
    "identityContext": "identity_context",
}
_TRACK_NAMES = {"event", "email", "time", *_SDK_NAMES.values()}


class _Response(Protocol):
    """What the SDK's HTTP library gives; which one that is changes with the SDK's version."""

    @property
    def status_code(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def content(self) -> bytes: ...


class SdkSender:
    """A `Sender` that calls the SDK without its own repeats."""

    def __init__(self, url: str, token: str, timeout_seconds: float = 30.0) -> None:
        self._token = token
        self._client = OursPrivacy(
            base_url=url, max_retries=0, timeout=timeout_seconds, _strict_response_validation=True
        )

    def send(self, rows: Sequence[dict[str, Any]], *, by_track: bool = False) -> Answer:
        """See `Sender.send`."""
        events = [_sdk_row(row) for row in rows]
        try:
            answer = self._track(events[0]) if by_track else self._batch(events)
        except APIConnectionError:
            return silence(len(rows))
        except APIResponseValidationError as error:
            # Its types are another reading of the contract than ours.
            return Answer(error.status_code, (RowAnswer.NEITHER,) * len(rows))
        except APIStatusError as error:
            answer = error.response
        if by_track:
            return read_track_answer(answer.status_code, answer.headers, answer.content)
        return read_batch_answer(answer.status_code, answer.headers, answer.content, len(rows))

    def close(self) -> None:
        """See `Sender.close`."""
        self._client.close()

    def _batch(self, events: list[dict[str, Any]]) -> _Response:
        raw = self._client.batch.with_raw_response.create(token=self._token, events=events)  # type: ignore[arg-type]
        raw.parse()
        return raw.http_response

    def _track(self, event: dict[str, Any]) -> _Response:
        unknown = {name: value for name, value in event.items() if name not in _TRACK_NAMES}
        known = {name: value for name, value in event.items() if name in _TRACK_NAMES}
        raw = self._client.track.with_raw_response.event(token=self._token, **known, extra_body=unknown or None)
        raw.parse()
        return raw.http_response


def _sdk_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the SDK's names."""
    named = {_SDK_NAMES.get(name, name): value for name, value in row.items()}
    if "identity_context" in named:
        context = named["identity_context"]
        named["identity_context"] = {"ip": context["ip"], "user_agent": context["userAgent"]}
    return named
