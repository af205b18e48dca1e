"""Fields that say what an answer has to be: what they mean, and which of them contradict one another."""

import json
from typing import Any

import pytest

from services.gateway.api.bodies.chat import ChatBody
from services.gateway.api.bodies.completion import CompletionBody
from services.gateway.api.bodies.parsing import parse
from services.gateway.api.bodies.sampling import Sampling
from shared.errors import BadRequest
from shared.sampling.constraint import MAX_CONSTRAINT_BYTES, Constraint, ConstraintKind

BASES: list[tuple[type[Sampling], dict[str, Any]]] = [
    (CompletionBody, {"prompt": "p"}),
    (ChatBody, {"messages": [{"role": "user", "content": "hi"}]}),
]
SCHEMA = {"type": "object", "properties": {"b": {}, "a": {}}}
SCHEMA_PATH = "response_format.json_schema.schema"
AS_TEXT = '{"type":"object","properties":{"b":{},"a":{}}}'


def constraint_of(schema: type[Sampling], base: dict[str, Any], fields: dict[str, Any]) -> Constraint | None:
    body = parse(schema, json.dumps({**base, **fields}).encode())
    body.check_supported()
    return body.sampling_params(5, 300).constraint


@pytest.mark.parametrize(("schema", "base"), BASES)
@pytest.mark.parametrize(
    ("fields", "kind", "text"),
    [
        ({"response_format": {"type": "json_object"}}, "json_schema", '{"type":"object"}'),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
            "json_schema",
            AS_TEXT,
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "description": "d", "schema": SCHEMA, "strict": False},
                }
            },
            "json_schema",
            AS_TEXT,
        ),
        ({"structured_outputs": {"json": SCHEMA}}, "json_schema", AS_TEXT),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, "json_schema", AS_TEXT),
        ({"structured_outputs": {"json_object": True}}, "json_schema", '{"type":"object"}'),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+"),
        ({"structured_outputs": {"choice": ["é", "b"]}}, "choice", '["\\u00e9", "b"]'),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, "grammar", 'start: "a"'),
        ({"guided_json": SCHEMA}, "json_schema", AS_TEXT),
        ({"guided_json": AS_TEXT}, "json_schema", AS_TEXT),
        ({"guided_regex": "a+"}, "regex", "a+"),
        ({"guided_choice": ["a"]}, "choice", '["a"]'),
        ({"guided_grammar": 'root ::= "a"'}, "grammar", 'root ::= "a"'),
        ({"guided_regex": "a", "response_format": {"type": "text"}}, "regex", "a"),
    ],
)
def test_every_form_is_one_constraint(
    schema: type[Sampling], base: dict[str, Any], fields: dict[str, Any], kind: str, text: str
) -> None:
    assert constraint_of(schema, base, fields) == Constraint(ConstraintKind(kind), text)


@pytest.mark.parametrize(("schema", "base"), BASES)
@pytest.mark.parametrize(
    "fields", [{}, {"response_format": {"type": "text"}}, {"response_format": None, "guided_json": None}]
)
def test_text_is_free(schema: type[Sampling], base: dict[str, Any], fields: dict[str, Any]) -> None:
    assert constraint_of(schema, base, fields) is None


@pytest.mark.parametrize(("schema", "base"), BASES)
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "json_object", "of": 5}}, "response_format.of"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            SCHEMA_PATH,
        ),
        ({"response_format": {"type": "text", "json_schema": {"schema": {}}}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}},
            SCHEMA_PATH,
        ),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"json": "[1"}}, "structured_outputs"),
        ({"structured_outputs": {"json": "[1]"}}, "structured_outputs"),
        ({"structured_outputs": {"json": "[" * 20_000}}, "structured_outputs"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"guided_choice": [5]}, "guided_choice[0]"),
        ({"guided_choice": ["a"] * 5000}, "guided_choice"),
        ({"guided_json": 5}, "guided_json"),
        ({"guided_regex": "a" * (MAX_CONSTRAINT_BYTES + 1)}, "guided_regex"),
        ({"guided_json": {"enum": ["a" * MAX_CONSTRAINT_BYTES]}}, "guided_json"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"structured_outputs": {"regex": "a"}, "guided_grammar": "a"}, "guided_grammar"),
    ],
)
def test_what_is_refused(schema: type[Sampling], base: dict[str, Any], fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        constraint_of(schema, base, fields)
    assert caught.value.param == param
    assert param.split(".")[0].split("[")[0] in str(caught.value)
