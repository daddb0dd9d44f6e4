"""Calls of the official SDK, made in a process of their own so that any version of it can be called.

It says its version, then what every parameter of that version is: for each call, arguments with a value for every
parameter that the SDK's types know, and the JSON that they must become. After that, each line of standard input is JSON
`{"base_url", "is_async", "max_retries", "timeout", "calls": [[name, arguments], …]}`, a name being one of `METHODS`. To
each a line of standard output: for each call the parsed answer `{"answer": {…}}`, or what the SDK raised
`{"raised": class, "status": …, "body": …}`.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, Required, Union, get_args, get_origin

import ours_privacy
from ours_privacy._utils import PropertyInfo
from ours_privacy.types import batch_create_params, track_event_params, visitor_upsert_params
from typing_extensions import get_type_hints, is_typeddict

METHODS: dict[str, Callable[[Any], Any]] = {
    "track": lambda client: client.track.event,
    "batch": lambda client: client.batch.create,
    "identify": lambda client: client.visitor.upsert,
    # Since 1.33.0.
    "assignment": lambda client: client.experiments.assignment,
    "personalization": lambda client: client.experiments.personalization,
}


def main() -> None:
    print(json.dumps(ours_privacy.__version__), flush=True)
    print(json.dumps(every_parameter()), flush=True)
    for line in sys.stdin:
        print(json.dumps(asyncio.run(answers(json.loads(line)))), flush=True)


async def answers(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """What each call comes to, by the SDK's asynchronous client or the other."""
    settings: dict[str, Any] = {
        "base_url": asked["base_url"],
        "max_retries": asked["max_retries"],
        "timeout": asked["timeout"],
        # The SDK's own strict mode: an answer that is not of the documented shape raises.
        "_strict_response_validation": True,
    }
    if asked["is_async"]:
        async with ours_privacy.AsyncOursPrivacy(**settings) as client:
            return [await call(METHODS[name](client), arguments) for name, arguments in asked["calls"]]
    with ours_privacy.OursPrivacy(**settings) as client:
        return [await call(METHODS[name](client), arguments) for name, arguments in asked["calls"]]


async def call(method: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        answer = method(**arguments)
        return {"answer": (await answer if inspect.isawaitable(answer) else answer).to_dict()}
    except ours_privacy.APIStatusError as raised:
        return {"raised": type(raised).__name__, "status": raised.status_code, "body": raised.body}
    except ours_privacy.APIError as raised:
        return {"raised": type(raised).__name__}


class Filled(NamedTuple):
    """A value for everything that one of the SDK's types has."""

    arguments: Any
    """As a caller gives it."""
    sent: Any
    """As it must arrive, with the names that JSON has."""


def every_parameter() -> dict[str, Filled]:
    """For each call, a value for every parameter."""
    return {
        "track": filled(track_event_params.TrackEventParams, ""),
        "batch": filled(batch_create_params.BatchCreateParams, ""),
        "identify": filled(visitor_upsert_params.VisitorUpsertParams, ""),
    }


def filled(hint: Any, name: str) -> Filled:
    """A value of a type, which follows from the parameter's name."""
    kinds = get_args(hint) if get_origin(hint) is Union else (hint,)
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    if is_typeddict(kinds[0]):
        return _filled_dict(kinds[0])
    if len(kinds) > 1:
        # Whatever JSON holds may stand here.
        value: Any = [1, "zwei", {"three": [None, False]}, len(name)]
    elif kinds[0] is str:
        value = f"größe of {name} 🎟"
    elif kinds[0] is float:
        value = len(name) + 0.25
    elif kinds[0] is bool:
        value = len(name) % 2 == 0
    elif is_typeddict(get_args(kinds[0])[0]):
        entry = _filled_dict(get_args(kinds[0])[0])
        return Filled([entry.arguments], [entry.sent])
    else:
        value = {"plan": "größer 🎟", "empty": "", "nothing": None}
        if "Mapping" in str(kinds[0]):
            value |= {"amount": 11.77, "count": 3, "yes": True, "list": [1, "two", [3]], "a": {"b": {"c": {"d": 1}}}}
        return Filled(value | {"": "empty keys go"}, value)
    return Filled(value, value)


def _filled_dict(typed: Any) -> Filled:
    arguments, sent = {}, {}
    for name, hint in get_type_hints(typed, include_extras=True).items():
        alias = name
        wrappers: tuple[Any, ...] = (Annotated, Required)
        while get_origin(hint) in wrappers:
            alias = next((info.alias for info in get_args(hint)[1:] if isinstance(info, PropertyInfo)), None) or alias
            hint = get_args(hint)[0]
        arguments[name], sent[alias] = filled(hint, name)
    return Filled(arguments, sent)


if __name__ == "__main__":
    main()
