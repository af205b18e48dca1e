"""Fields that say what an answer has to be, as OpenAI, vLLM and older vLLM have them: at most one of them at a time."""

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from shared.errors import BadRequest
from shared.sampling.constraint import Constraint, ConstraintKind

MAX_CHOICES_OF_ANSWER = 4096


def _schema_kind(value: Any) -> str:
    return "<text>" if isinstance(value, str) else "<object>"


JsonObject = dict[str, Any]
JsonSchema = Annotated[
    Annotated[JsonObject, Tag("<object>")] | Annotated[str, Tag("<text>")],
    Discriminator(_schema_kind),
]
Choices = Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES_OF_ANSWER, fail_fast=True)]


class _Form(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


class SchemaFormat(_Form):
    """OpenAI's `json_schema`. The schema is kept to whatever `strict` says."""

    name: str | None = None
    description: str | None = None
    schema_: JsonObject = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(_Form):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None

    def constraint(self) -> Constraint | None:
        """Raises `BadRequest` when type and schema do not belong together."""
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise BadRequest("json_schema goes with the type json_schema, and the type with it")
        if self.json_schema is not None:
            return _schema(self.json_schema.schema_)
        return _schema({"type": "object"}) if self.type == "json_object" else None


class StructuredOutputs(_Form):
    """vLLM's form. `json_object: true` asks for any JSON object."""

    json_: JsonSchema | None = Field(default=None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None

    def constraint(self) -> Constraint:
        """Raises `BadRequest` unless exactly one is given."""
        wanted = [constraint for constraint in self._constraints() if constraint is not None]
        if len(wanted) != 1:
            raise BadRequest("takes exactly one of json, json_object, regex, choice and grammar")
        return wanted[0]

    def _constraints(self) -> Iterator[Constraint | None]:
        yield None if self.json_ is None else _schema(self.json_)
        yield _schema({"type": "object"}) if self.json_object else None
        yield None if self.regex is None else Constraint(ConstraintKind.REGEX, self.regex)
        yield None if self.choice is None else _choice(self.choice)
        yield None if self.grammar is None else Constraint(ConstraintKind.GRAMMAR, self.grammar)


class ConstraintFields(BaseModel):
    """These fields of a request body."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: JsonSchema | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None

    @property
    def constraint_field(self) -> str | None:
        """The field that constrains the answer. Raises `BadRequest` when several do."""
        asks_for_text = self.response_format is not None and self.response_format.type == "text"
        wanted = [name for name in ConstraintFields.model_fields if getattr(self, name) is not None]
        constraining = [name for name in wanted if name != "response_format" or not asks_for_text]
        if len(constraining) > 1:
            first, second = constraining[:2]
            raise BadRequest(f"{second}: {first} constrains the answer already; give one of them", param=second)
        return constraining[0] if constraining else None

    def constraint(self) -> Constraint | None:
        """Return what the answer has to be. Raises `BadRequest` naming the field."""
        name = self.constraint_field
        try:
            if self.response_format is not None and (name in (None, "response_format")):
                name = "response_format"
                return self.response_format.constraint()
            return None if name is None else self._constraint_of(name)
        except BadRequest as error:
            raise of_field(error, name) from None

    def _constraint_of(self, name: str) -> Constraint:
        value = getattr(self, name)
        if isinstance(value, StructuredOutputs):
            return value.constraint()
        if name == "guided_json":
            return _schema(value)
        if name == "guided_choice":
            return _choice(value)
        return Constraint(ConstraintKind.REGEX if name == "guided_regex" else ConstraintKind.GRAMMAR, value)


def of_field(error: BadRequest, name: str | None) -> BadRequest:
    """Return an error of a constraint as one of the field that holds it."""
    return error if name is None else BadRequest(f"{name}: {error}", param=name)


def _schema(schema: JsonObject | str) -> Constraint:
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except RecursionError:
            raise BadRequest("the schema is nested too deeply") from None
        except ValueError as error:
            raise BadRequest(f"the schema is not JSON: {error}") from None
        if not isinstance(schema, dict):
            raise BadRequest("the schema must be a JSON object")
    # The order of keys is the order of the answer's.
    return Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(schema, separators=(",", ":")))


def _choice(choices: list[str]) -> Constraint:
    return Constraint(ConstraintKind.CHOICE, json.dumps(choices))
