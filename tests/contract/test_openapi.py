"""The OpenAPI document says what the server does: every field, limit and answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given

from counterfoil.contract import fields as contract
from counterfoil.contract import rejections
from counterfoil.contract.answers import TRACK_ACCEPTED, Answer, batch_answer, error_answer, unavailable, uncertain
from counterfoil.contract.limits import Limits
from counterfoil.contract.openapi import openapi_document
from counterfoil.contract.requests import read_batch, read_identify, read_track
from counterfoil.contract.rows import judge_batch, judge_identify, judge_track
from tests.contract.json_texts import json_texts
from tests.contract.judging import MADE, NOW_MS, RULES
from tests.contract.test_row_rules import valid_rows

LIMITS = Limits()
DOCUMENT = openapi_document(LIMITS, "1.2.3")
SCHEMAS = DOCUMENT["components"]["schemas"]


def schema(name: str) -> Any:
    """A validator of one of the document's schemas."""
    return jsonschema_rs.Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    )


def walk(node: Any) -> Iterator[Any]:
    yield node
    for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from walk(inner)


def resolved(reference: str) -> Any:
    node: Any = DOCUMENT
    for name in reference.removeprefix("#/").split("/"):
        node = node[name.replace("~1", "/")]
    return node


def answered(path: str, status: int) -> Any:
    """The validator of an answer's body."""
    operation = next(iter(DOCUMENT["paths"][path].values()))
    response = operation["responses"][str(status)]
    response = resolved(response["$ref"]) if "$ref" in response else response
    return schema(response["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2])


def test_the_document_is_openapi_3_1() -> None:
    """It can be JSON, every reference leads somewhere, every schema is one of Draft 2020-12."""
    json.dumps(DOCUMENT)
    assert DOCUMENT["openapi"] == "3.1.0"
    assert DOCUMENT["info"]["version"] == "1.2.3"
    for node in walk(DOCUMENT):
        if isinstance(node, dict) and "$ref" in node:
            assert resolved(node["$ref"])
    for name, inner in SCHEMAS.items():
        jsonschema_rs.Draft202012Validator(inner | {"components": DOCUMENT["components"]})
        assert name in json.dumps([DOCUMENT["paths"], DOCUMENT["components"]]), name


def test_each_operation_has_a_name_of_its_own_and_answers() -> None:
    """What tools make clients of."""
    operations = [operation for path in DOCUMENT["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations) == 7
    for operation in operations:
        for status, response in operation["responses"].items():
            assert re.fullmatch("[1-5][0-9]{2}", status)
            assert (resolved(response["$ref"]) if "$ref" in response else response)["description"]


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("BatchRow", contract.BATCH_ROW),
        ("Track", contract.TRACK_ROW),
        ("Identify", contract.IDENTIFY_ROW),
        ("UserProperties", contract.USER_PROPERTIES),
        ("DefaultProperties", contract.DEFAULT_PROPERTIES),
        ("IdentityContext", contract.IDENTITY_CONTEXT),
    ],
)
def test_every_field_of_the_tables_is_in_it(name: str, table: contract.Table) -> None:
    """With its length, its kinds and whether it is required."""
    properties = {field: rules for field, rules in SCHEMAS[name]["properties"].items() if field != "token"}
    assert list(properties) == list(table)
    required = [field.name for field in table.values() if field.is_required]
    assert [field for field in SCHEMAS[name].get("required", []) if field != "token"] == required
    for field in table.values():
        assert properties[field.name].get("maxLength") == field.max_length
        if field.type in ("string", "number", "boolean"):
            kinds = properties[field.name]["type"]
            assert ("null" in kinds) == (not field.is_required)
            assert (field.to_text and "number" in kinds) or field.type in kinds


def test_every_limit_is_in_it() -> None:
    """As a schema of GET /api/v1/limits that holds the values, and where it bounds something."""
    limits = Limits(rows_max=7, object_keys_max=9, object_levels_max=2, token_chars_max=11, row_bytes_max=5000)
    schemas = openapi_document(limits, "1")["components"]["schemas"]
    assert jsonschema_rs.is_valid(schemas["Limits"], limits.model_dump())
    assert not jsonschema_rs.is_valid(schemas["Limits"], LIMITS.model_dump())
    assert schemas["Batch"]["properties"]["events"]["maxItems"] == 7
    assert schemas["FreeForm1"]["maxProperties"] == 9
    assert "FreeForm3" not in schemas
    assert schemas["Track"]["properties"]["token"]["maxLength"] == 11
    assert "5000 bytes" in schemas["BatchRow"]["description"]


def test_its_examples_are_what_the_server_takes() -> None:
    """Each can be sent as it stands."""

    def example(path: str) -> bytes:
        content = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert schema(content["schema"]["$ref"].rpartition("/")[2]).is_valid(content["example"])
        return json.dumps(content["example"]).encode()

    batch = judge_batch(read_batch(example("/api/v1/batch"), LIMITS), RULES, NOW_MS)
    assert (len(batch.bodies), batch.faults) == (2, {})
    assert not judge_track(read_track(example("/api/v1/track"), LIMITS), RULES, NOW_MS, MADE).faults
    assert not judge_identify(read_identify(example("/api/v1/identify"), LIMITS), RULES, NOW_MS, MADE).faults


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/api/v1/batch", batch_answer(3, {})),
        ("/api/v1/batch", batch_answer(3, {1: "x"})),
        ("/api/v1/batch", batch_answer(3, {1: "x"}, [2])),
        ("/api/v1/batch", batch_answer(2, {1: "x"}, [0])),
        ("/api/v1/batch", unavailable("x")),
        ("/api/v1/batch", error_answer(rejections.rows_too_many(LIMITS))),
        ("/api/v1/batch", error_answer(rejections.not_json())),
        ("/api/v1/track", TRACK_ACCEPTED),
        ("/api/v1/track", error_answer(rejections.row_invalid("x"))),
        ("/api/v1/track", error_answer(rejections.token_unknown())),
        ("/api/v1/track", error_answer(rejections.body_too_large(LIMITS))),
        ("/api/v1/track", error_answer(rejections.content_type_wrong())),
        ("/api/v1/track", error_answer(rejections.rate_limited(3))),
        ("/api/v1/track", uncertain("x")),
        ("/api/v1/identify", unavailable("x")),
    ],
)
def test_answers_are_as_it_says(path: str, answer: Answer) -> None:
    """Every kind of answer fits the schema of its status, which takes nothing more."""
    body = json.loads(answer.body)
    validator = answered(path, answer.status)
    assert validator.is_valid(body), list(validator.iter_errors(body))
    assert not validator.is_valid(body | {"more": 1})


def test_its_answers_are_those_of_the_server() -> None:
    """The examples of answers fit their schemas."""
    for node in walk([DOCUMENT["paths"], DOCUMENT["components"]["responses"]]):
        if isinstance(node, dict) and "example" in node:
            name = node["schema"]["$ref"].rpartition("/")[2]
            assert schema(name).is_valid(node["example"]), name


@given(valid_rows.flatmap(json_texts))
def test_what_it_takes_for_a_row_is_no_narrower_than_the_contract(text: bytes) -> None:
    """A row that is accepted fits its schema, but for what JSON Schema counts otherwise."""
    judged = judge_batch(read_batch(b'{"token":"t","events":[' + text + b"]}", LIMITS), RULES, NOW_MS)
    if judged.bodies:
        fields = json.loads(text)
        validator = schema("BatchRow")
        assert validator.is_valid(fields), [error.message for error in validator.iter_errors(fields)]
