"""Constraints that are compiled, and those that are refused: beside the loop, within limits, each once."""

import asyncio
import json
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from shared.errors import BadRequest, ModelFileError, Overloaded
from shared.model.grammar import grammars as module
from shared.model.grammar.grammars import Grammars
from shared.model.text.tokenizer import Tokenizer
from shared.sampling.constraint import MAX_CONSTRAINT_BYTES, Constraint, ConstraintKind
from tests.support.structured import choice, grammar, grammars_of, regex, save_tokenizer, schema

OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return save_tokenizer(tmp_path)


@pytest.fixture
def compiler(tokenizer: Tokenizer, tmp_path: Path) -> Grammars:
    return grammars_of(tmp_path)


@pytest.mark.parametrize(
    ("constraint", "whole", "not_whole"),
    [
        (schema(OBJECT), ['{"a":1}', '{ "a" :\n-12 }'], ['{"a":1', '{"b":1}', '{"a":"x"}', "[]"]),
        (schema({"type": "object"}), ["{}", '{"x":[1,{"y":null}]}'], ["[]", "1"]),
        (regex("a+b?"), ["a", "aab"], ["", "b", "aba"]),
        (regex("^a$"), ["a"], ["^a$"]),
        (choice("yes", "no"), ["yes", "no"], ["ye", "maybe"]),
        (choice('"q"\\', "é\n😀", "\0"), ['"q"\\', "é\n😀", "\0"], ["q"]),
        (grammar('start: "a" start | "b"'), ["b", "aab"], ["aa", "ba"]),
        (grammar('root ::= "a" root | "b"'), ["b", "aab"], ["aa", "ba"]),
    ],
)
async def test_what_follows_a_constraint(
    compiler: Grammars, tokenizer: Tokenizer, constraint: Constraint, whole: list[str], not_whole: list[str]
) -> None:
    for text in whole:
        guide = await compiler.guide(constraint, (), tokenizer.encode(text))
        assert guide.matcher.is_accepting(), text
    for text in not_whole:
        with suppress(BadRequest):
            guide = await compiler.guide(constraint, (), tokenizer.encode(text))
            assert not guide.matcher.is_accepting(), text


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (schema({"type": "objekt"}), "objekt"),
        (schema({"properties": 5}), "properties"),
        (schema({"not": {}}), "not"),
        (schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (schema({"type": "string", "format": "shoe"}), "shoe"),
        (schema({"type": "object", "not": {}, "x-guidance": {"lenient": True}}), "not"),
        (schema({"$ref": "http://127.0.0.1/x"}), "retriev"),
        (schema({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}), "no answer can begin"),
        (schema({"type": "integer", "minimum": 5, "maximum": 3}), "minimum"),
        (Constraint(ConstraintKind.JSON_SCHEMA, "[1"), "cannot be"),
        (regex("(a"), "unclosed group"),
        (regex("a(?=b)"), "look-ahead"),
        (regex("(" * 30_000 + ")" * 30_000), "cannot be compiled"),
        (choice(), "at least one"),
        (Constraint(ConstraintKind.CHOICE, "{}"), "list"),
        (grammar("start: nothing"), "nothing"),
        (grammar("nonsense"), "::="),
        (grammar(""), "cannot be"),
        (grammar("root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000), "cannot be read"),
        (grammar("start: " + "(" * 20_000 + '"a"' + ")" * 20_000), "nested"),
    ],
)
async def test_what_is_refused(compiler: Grammars, constraint: Constraint, message: str) -> None:
    with pytest.raises(BadRequest, match=message) as caught:
        await compiler.check(constraint)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    await compiler.check(regex("a"))


def test_a_constraint_has_a_bound() -> None:
    Constraint(ConstraintKind.REGEX, "a" * MAX_CONSTRAINT_BYTES)
    with pytest.raises(BadRequest, match="bytes"):
        Constraint(ConstraintKind.REGEX, "é" * (MAX_CONSTRAINT_BYTES // 2 + 1))


@pytest.mark.parametrize("kind", ["rules", "references"])
async def test_rules_may_refer_to_one_another_as_deep_as_there_is_room_for(compiler: Grammars, kind: str) -> None:
    """A thread of the usual stack does not survive these."""
    if kind == "rules":
        deep = grammar("start: rule0\n" + "".join(f"rule{i}: rule{i + 1}\n" for i in range(3200)) + 'rule3200: "x"')
    else:
        names = {f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(1400)}
        deep = schema({"$ref": "#/$defs/d0", "$defs": {**names, "d1400": {}}})
    assert len(deep.text) > MAX_CONSTRAINT_BYTES * 0.8
    guide = await compiler.guide(deep, ())
    assert not guide.matcher.is_error()


async def test_each_constraint_is_compiled_once(compiler: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Constraint, threading.Thread]] = []
    make = Grammars._make

    def noted(self: Grammars, constraint: Constraint) -> Any:
        made.append((constraint, threading.current_thread()))
        return make(self, constraint)

    monkeypatch.setattr(Grammars, "_make", noted)
    monkeypatch.setattr(module, "MAX_KEPT", 2)
    await asyncio.gather(*(compiler.guide(regex("a"), ()) for _ in range(20)))
    assert [constraint for constraint, _ in made] == [regex("a")]
    assert made[0][1] is not threading.current_thread()
    await compiler.check(regex("b"))
    await compiler.check(regex("a"))
    await compiler.check(regex("c"))  # b goes: a was used later
    assert len(made) == 3
    await compiler.check(regex("a"))
    assert len(made) == 3
    await compiler.check(regex("b"))
    assert len(made) == 4


async def test_who_waits_too_long_is_told_why(compiler: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    await compiler.check(regex("a"))
    held, make = threading.Event(), Grammars._make

    def slow(self: Grammars, constraint: Constraint) -> Any:
        held.wait(60)
        return make(self, constraint)

    monkeypatch.setattr(Grammars, "_make", slow)
    monkeypatch.setattr(module, "MAX_COMPILE_S", 0.2)
    monkeypatch.setattr(module, "MAX_COMPILING", 3)
    try:
        started = time.monotonic()
        asked = [compiler.check(regex(text)) for text in ("b", "c", "d")]
        errors = await asyncio.gather(*asked, compiler.check(regex("e")), return_exceptions=True)
        assert [type(error) for error in errors] == [BadRequest, BadRequest, Overloaded, Overloaded]
        assert "longer than" in str(errors[0])
        await compiler.check(regex("a"))  # what is known needs nobody
        assert time.monotonic() - started < 30
    finally:
        held.set()
    monkeypatch.setattr(module, "MAX_COMPILE_S", 60)
    await compiler.check(regex("b"))


async def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError):
        await grammars_of(tmp_path).check(regex("a"))


async def test_whitespace_between_json_tokens_ends(compiler: Grammars, tokenizer: Tokenizer) -> None:
    await compiler.guide(schema(OBJECT), (), tokenizer.encode("{" + " " * 32))
    with pytest.raises(BadRequest):
        await compiler.guide(schema(OBJECT), (), tokenizer.encode("{" + " " * 33))


async def test_keys_come_in_the_order_of_the_schema(compiler: Grammars, tokenizer: Tokenizer) -> None:
    both = {"type": "object", "properties": {"b": {}, "a": {}}, "required": ["a", "b"]}
    await compiler.guide(schema(both), (), tokenizer.encode(json.dumps({"b": 1, "a": 1})))
    with pytest.raises(BadRequest):
        await compiler.guide(schema(both), (), tokenizer.encode(json.dumps({"a": 1, "b": 1})))
