"""The OpenAPI 3.1 document of this server, made from the tables, the limits and the answers.

It says what the server accepts, which is more than the SDKs' types: what becomes text, that unknown fields are kept.
Where JSON Schema can't say a rule (lengths are counted in UTF-16 units after trimming, the time window moves, empty
keys don't count) a description does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from counterfoil.contract import fields as contract
from counterfoil.contract.careful import IDENTIFY_EVENT
from counterfoil.contract.fields import Field, Table
from counterfoil.contract.limits import Limits

Schema = dict[str, Any]

BASE_PATH = "/api/v1"

JSON = "application/json"


def openapi_document(limits: Limits, version: str) -> dict[str, Any]:
    """The document of a server of this version with these limits."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Counterfoil",
            "version": version,
            "summary": "An ingest API for server-side events that answers row by row.",
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "This server."}],
        "tags": [
            {"name": "events", "description": "Rows come in."},
            {"name": "server", "description": "What the server says of itself."},
        ],
        "paths": _paths(limits),
        "components": {"schemas": _schemas(limits), "responses": _responses(limits), "headers": _HEADERS},
    }


_DESCRIPTION = """\
A row is answered `success: true` only after the bytes that hold it have been flushed to disk, and is delivered once for
each source and `distinctId`, however often it is sent.

The token of a source stands in the body, beside the rows. Requests may be compressed with gzip, deflate, zstd or br;
the limits hold for both sizes. Every answer carries `X-Request-Id`.

This is an independent implementation of a public API, not affiliated with its vendor."""


def _paths(limits: Limits) -> dict[str, Any]:
    return {
        f"{BASE_PATH}/batch": {
            "post": {
                "operationId": "batch",
                "tags": ["events"],
                "summary": "Take many rows; each is judged alone and answered alone.",
                "description": (
                    "Rows are judged in order, and nothing in one can fail another. `accepted + failed` is the number"
                    " of rows. A row that repeats an earlier one is a success."
                ),
                "requestBody": _body("Batch", _BATCH_EXAMPLE),
                "responses": {
                    "200": _answer("Every row was accepted.", "BatchAnswer", _ACCEPTED_EXAMPLE),
                    "207": _answer(
                        "Some rows failed, or all were invalid; `results` says which, why, and which to send again.",
                        "BatchAnswer",
                        _MIXED_EXAMPLE,
                    ),
                    **_refused(*_REFUSED_WITH_BODY),
                    "500": _response("BatchUnavailable"),
                },
            }
        },
        f"{BASE_PATH}/track": _row_path(
            "track",
            "Track",
            "Take one row.",
            "Without a `distinctId` the server makes one, and a repeat of the request is a second row. Such a request"
            " is answered with `x-should-retry: false` where it can't be known whether the row is kept.",
            _TRACK_EXAMPLE,
        ),
        f"{BASE_PATH}/identify": _row_path(
            "identify",
            "Identify",
            "Set the properties of a visitor.",
            f"Makes one row of the event `{IDENTIFY_EVENT}`, with a distinctId made by the server and the time of"
            " receipt. Null clears a property; one that is absent or an empty string stays as it was.",
            _IDENTIFY_EXAMPLE,
        ),
        f"{BASE_PATH}/openapi": _shown("openapi", "This document.", {"type": "object"}),
        f"{BASE_PATH}/limits": _shown("limits", "Every limit, with its value.", _ref("Limits")),
        "/livez": _shown("livez", "Whether the process serves.", _ref("Done")),
        "/readyz": _shown("readyz", "Whether the queue can take a row now.", _ref("Done"), may_be_unready=True),
    }


def _row_path(name: str, schema: str, summary: str, description: str, example: Schema) -> Schema:
    return {
        "post": {
            "operationId": name,
            "tags": ["events"],
            "summary": summary,
            "description": description,
            "requestBody": _body(schema, example),
            "responses": {
                "200": _answer("The row was accepted.", "Done", {"success": True}),
                **_refused(*_REFUSED_WITH_BODY),
                "500": _response("Unavailable"),
            },
        }
    }


def _shown(name: str, summary: str, schema: Schema, *, may_be_unready: bool = False) -> Schema:
    responses = {"200": {"description": summary, "content": {JSON: {"schema": schema}}}}
    if may_be_unready:
        responses["503"] = _response("NotReady")
    return {"get": {"operationId": name, "tags": ["server"], "summary": summary, "responses": responses}}


def _body(schema: str, example: Schema) -> Schema:
    return {"required": True, "content": {JSON: {"schema": _ref(schema), "example": example}}}


def _answer(description: str, schema: str, example: Schema) -> Schema:
    return {"description": description, "content": {JSON: {"schema": _ref(schema), "example": example}}}


def _ref(schema: str) -> Schema:
    return {"$ref": f"#/components/schemas/{schema}"}


def _response(name: str) -> Schema:
    return {"$ref": f"#/components/responses/{name}"}


_REFUSALS = {
    "400": ("Malformed", "Not JSON in UTF-8, of another shape, or in /track and /identify an invalid row."),
    "401": ("Unauthorized", "The token is unknown or revoked."),
    "408": ("Late", "The request did not arrive whole in time."),
    "413": ("TooLarge", "The body, compressed or decompressed, is over its limit, or there are too many rows."),
    "415": ("Unsupported", "The Content-Type is not application/json, or the Content-Encoding is one we don't speak."),
    "429": ("TooMany", "The source is over its rate limit; `Retry-After` says how long to wait."),
}
_REFUSED_WITH_BODY = tuple(_REFUSALS)


def _refused(*statuses: str) -> dict[str, Schema]:
    return {status: _response(_REFUSALS[status][0]) for status in statuses}


def _responses(limits: Limits) -> dict[str, Schema]:
    retry = {"Retry-After": {"$ref": "#/components/headers/RetryAfter"}}
    refused = {name: _answer(description, "Refused", _REFUSED_EXAMPLE) for name, description in _REFUSALS.values()}
    refused["TooLarge"]["content"][JSON] = {
        "schema": _ref("OverLimit"),
        "example": {
            "success": False,
            "error": f"the request holds more than {limits.rows_max} rows",
            "limit": limits.rows_max,
        },
    }
    refused["TooMany"]["headers"] = retry
    unavailable = "Nothing is confirmed; send the request again, unless `x-should-retry` is `false`."
    return {
        **refused,
        "Unavailable": {
            **_answer(unavailable, "Unavailable", _UNAVAILABLE_EXAMPLE),
            "headers": {**retry, "x-should-retry": {"$ref": "#/components/headers/ShouldRetry"}},
        },
        "BatchUnavailable": {
            **_answer(
                "With `results`: every valid row failed in the queue, send the failed ones again. Without: nothing is"
                " confirmed, send the request again.",
                "Unavailable",
                _UNAVAILABLE_EXAMPLE,
            ),
            "headers": retry,
        },
        "NotReady": {"description": "The queue takes no rows now.", "content": {JSON: {"schema": _ref("Unready")}}},
    }


_HEADERS = {
    "RetryAfter": {
        "description": "Seconds to wait before the next try.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 60},
    },
    "ShouldRetry": {
        "description": "`false`: the row has no distinctId and may or may not be kept; a repeat could be a second one.",
        "schema": {"type": "string", "enum": ["false"]},
    },
}


def _schemas(limits: Limits) -> dict[str, Schema]:
    return {
        "Batch": {
            "type": "object",
            "required": ["token", "events"],
            "properties": {
                "token": _token(limits),
                "events": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": limits.rows_max,
                    "items": _ref("BatchRow"),
                    "description": "Rows, each judged alone. A `token` in a row is no part of it.",
                },
            },
        },
        "BatchRow": _row(contract.BATCH_ROW, limits),
        "Track": _with_token(_row(contract.TRACK_ROW, limits), limits),
        "Identify": _with_token(_row(contract.IDENTIFY_ROW, limits), limits),
        "UserProperties": _object(contract.USER_PROPERTIES, "Properties of a visitor; unknown names are kept."),
        "DefaultProperties": _object(contract.DEFAULT_PROPERTIES, "Known properties; unknown names are kept."),
        "IdentityContext": _object(contract.IDENTITY_CONTEXT, "The network context of the visitor."),
        **_free_form(limits),
        **_answers(),
        "Limits": _limits(limits),
    }


def _token(limits: Limits) -> Schema:
    return {
        "type": "string",
        "pattern": r"\S",
        "maxLength": limits.token_chars_max,
        "description": f"The token of the source: 1 to {limits.token_chars_max} characters after trimming.",
    }


def _row(table: Table, limits: Limits) -> Schema:
    schema = _object(
        table,
        f"A row: at most {limits.row_bytes_max} bytes of JSON and {limits.row_depth_max} levels of nesting."
        " Unknown fields are kept and delivered.",
    )
    for name, text in _ROW_DESCRIPTIONS.items():
        if name in schema["properties"]:
            schema["properties"][name]["description"] = text
    if "time" in schema["properties"]:
        schema["properties"]["time"]["description"] = _time(limits)
    return schema


_ROW_DESCRIPTIONS = {
    "event": "The event's name. Trimmed.",
    "distinctId": "What makes the row itself: rows of one source with the same are one. Trimmed.",
    "userId": "The visitor, taken as it is. Trimmed; empty is absent.",
    "externalId": "The visitor in the sender's system. Numbers and booleans become text. Trimmed; empty is absent.",
    "email": "The visitor's address; its form is not checked. Trimmed; empty is absent.",
}


def _time(limits: Limits) -> str:
    back = f"{limits.age_days_max} days" if limits.age_days_max else "any time"
    return (
        "Milliseconds since the Unix epoch; a fraction is cut off. Absent: the time of receipt. Where the source sets"
        f" no window of its own: at most {back} back and {limits.ahead_seconds_max} seconds ahead."
    )


def _with_token(row: Schema, limits: Limits) -> Schema:
    return {
        **row,
        "required": ["token", *row.get("required", ())],
        "properties": {"token": _token(limits), **row["properties"]},
    }


def _object(table: Table, description: str) -> Schema:
    schema: Schema = {
        "type": "object",
        "description": description,
        "properties": {name: _field(field) for name, field in table.items()},
    }
    required = [name for name, field in table.items() if field.is_required]
    return schema | ({"required": required} if required else {})


def _field(field: Field) -> Schema:
    if field.type == "any":
        return {"description": "Any JSON value."}
    if field.type in ("map", "object"):
        schema = _ref("FreeForm1") if field.type == "map" else _ref(_OBJECT_SCHEMAS[field.name])
        return schema if field.is_required else {"anyOf": [schema, {"type": "null"}]}
    kinds = {"time": ["number"], "number": ["number"], "boolean": ["boolean"], "string": ["string"]}[field.type]
    kinds = kinds + ["number", "boolean"] * field.to_text + ["null"] * (not field.is_required)
    schema = {"type": kinds if len(kinds) > 1 else kinds[0]}
    if field.max_length is not None:
        schema["maxLength"] = field.max_length
    if field.min_length:
        # After trimming something must be left.
        schema["pattern"] = r"\S"
    rules = _rules(field)
    return schema | ({"description": rules} if rules else {})


_OBJECT_SCHEMAS = {
    "userProperties": "UserProperties",
    "defaultProperties": "DefaultProperties",
    "identityContext": "IdentityContext",
}


def _rules(field: Field) -> str:
    """The rules of a property that its schema doesn't say."""
    said = []
    if field.max_length is not None:
        said.append(f"At most {field.max_length} UTF-16 code units{' after trimming' if field.trim else ''}.")
    if field.to_text:
        said.append("Numbers and booleans become text.")
    elif field.trim:
        said.append("Trimmed.")
    return " ".join(said)


def _free_form(limits: Limits) -> dict[str, Schema]:
    """A schema for each object level; arrays and what is in them are not counted."""
    levels = limits.object_levels_max
    first: Schema = {
        "description": (
            "A free-form object. Empty keys are removed, arrays are cut to their first"
            f" {limits.array_entries_max} entries, and numbers at the top level outside ±(2^53 - 1) become strings."
            f" Then: at most {limits.object_keys_max} keys, {levels} object levels, and JSON shorter than"
            f" {limits.object_units_max} UTF-16 code units."
        ),
        "maxProperties": limits.object_keys_max,
    }
    plain: Schema = {"type": ["string", "number", "boolean", "null", "array"]}
    schemas: dict[str, Schema] = {}
    for level in range(1, levels + 1):
        inner = {"anyOf": [plain, _ref(f"FreeForm{level + 1}")]} if level < levels else plain
        schemas[f"FreeForm{level}"] = {"type": "object", **(first if level == 1 else {}), "additionalProperties": inner}
    return schemas


def _limits(limits: Limits) -> Schema:
    properties = {
        name: {"type": "integer", "const": getattr(limits, name), "description": field.description}
        for name, field in type(limits).model_fields.items()
    }
    return {"type": "object", "required": list(properties), "properties": properties}


def _answers() -> dict[str, Schema]:
    success: Schema = {"type": "boolean"}
    error = {"type": "string", "description": "What is wrong and what was expected; never a value that was sent."}
    results = {"type": "array", "items": _ref("Result"), "description": "One entry a row, in their order."}
    return {
        "Done": _exactly({"success": {"const": True}}),
        "BatchAnswer": _exactly(
            {
                "success": {**success, "description": "Whether `failed` is 0."},
                "accepted": {"type": "integer", "minimum": 0},
                "failed": {"type": "integer", "minimum": 0},
                "results": results,
            }
        ),
        "Result": {"oneOf": [_ref("AcceptedRow"), _ref("FailedRow")]},
        "AcceptedRow": _exactly({"index": _INDEX, "success": {"const": True}}),
        "FailedRow": _exactly(
            {
                "index": _INDEX,
                "success": {"const": False},
                "code": {
                    "type": "string",
                    "enum": ["invalid_event", "queue_failed"],
                    "description": "`invalid_event`: fix the row. `queue_failed`: send the same row again.",
                },
                "message": error,
            }
        ),
        "Refused": _exactly({"success": {"const": False}, "error": error}),
        "OverLimit": _exactly(
            {
                "success": {"const": False},
                "error": error,
                "limit": {"type": "integer", "description": "The limit that was exceeded; `error` names its unit."},
            }
        ),
        "Unavailable": _exactly(
            {
                "success": {"const": False},
                "error": error,
                "retryable": {**success, "description": "Whether the same may be sent again."},
                "results": results,
            },
            optional=("results",),
        ),
        "Unready": _exactly({"success": {"const": False}, "error": error}),
    }


_INDEX = {"type": "integer", "minimum": 0, "description": "The row's place in `events`, from 0."}


def _exactly(properties: Mapping[str, Schema], optional: Iterable[str] = ()) -> Schema:
    """An object of these properties and no other."""
    return {
        "type": "object",
        "required": [name for name in properties if name not in optional],
        "properties": dict(properties),
        "additionalProperties": False,
    }


_ROW_EXAMPLE = {
    "event": "Purchase",
    "distinctId": "order-1001",
    "externalId": "customer-7",
    "eventProperties": {"total": 49.9, "currency": "EUR"},
    "defaultProperties": {"host": "shop.example.com"},
}
_BATCH_EXAMPLE = {"token": "your-token", "events": [_ROW_EXAMPLE, _ROW_EXAMPLE | {"distinctId": "order-1002"}]}
_TRACK_EXAMPLE = {"token": "your-token", **_ROW_EXAMPLE}
_IDENTIFY_EXAMPLE = {
    "token": "your-token",
    "externalId": "customer-7",
    "userProperties": {"email": "ada@example.com", "city": "Bonn", "custom_properties": {"plan": "pro"}},
}
_ACCEPTED_EXAMPLE = {
    "success": True,
    "accepted": 2,
    "failed": 0,
    "results": [{"index": 0, "success": True}, {"index": 1, "success": True}],
}
_MIXED_EXAMPLE = {
    "success": False,
    "accepted": 1,
    "failed": 1,
    "results": [
        {"index": 0, "success": True},
        {
            "index": 1,
            "success": False,
            "code": "invalid_event",
            "message": "events[1].distinctId: expected a string of 1 to 400 characters, found none",
        },
    ],
}
_REFUSED_EXAMPLE = {"success": False, "error": "the token is unknown or revoked"}
_UNAVAILABLE_EXAMPLE = {
    "success": False,
    "error": "the queue takes no rows now; send the request again",
    "retryable": True,
}
