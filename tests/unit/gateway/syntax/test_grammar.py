"""What a grammar of calls lets through, the format's reader reads as calls that keep their schemas."""

import json
import random
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from services.gateway.syntax.answers import AnswerReading, AnswerSyntax, reader_of
from services.gateway.syntax.formats import FORMATS
from services.gateway.syntax.grammar import MAX_FORCED_CALLS, CallRules, grammar_of
from services.gateway.syntax.parts import CallArguments, CallBegun, ContentPart, ReasoningPart, joined
from shared.errors import BadRequest
from shared.model.grammar.grammars import Grammars
from shared.model.grammar.guide import Guide, MaskWriter
from shared.model.text.tokenizer import Tokenizer
from shared.sampling.constraint import Constraint, ConstraintKind
from tests.support.structured import EOS, grammars_of, save_tokenizer

SCHEMAS: dict[str, dict[str, Any]] = {
    "weather": {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", 'a "b"']}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
    "now": {"type": "object", "properties": {}, "additionalProperties": False},
}
MARKERS = ["<tool_call>", "</tool_call>", "<think>", "</think>", "<|python_tag|>"]
ANSWER = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}


@pytest.fixture(params=["text", "added", "special"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    """One whose markers are text like any other, added tokens, or special ones."""
    tokenizer = save_tokenizer(tmp_path)
    if request.param != "text":
        backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
        backend.add_tokens([AddedToken(text, special=request.param == "special") for text in MARKERS])
        backend.save(str(tmp_path / "tokenizer.json"))
        tokenizer = Tokenizer.load(tmp_path)
    return tokenizer


class Walker:
    """Draws answers from all that a grammar lets through; what is whole may end."""

    def __init__(self, directory: Path, tokenizer: Tokenizer, name: str, **rules: Any) -> None:
        self._tokenizer = tokenizer
        self._grammars: Grammars = grammars_of(directory)
        self._writer = MaskWriter()
        self._rules = CallRules(**{"schemas": SCHEMAS, "is_required": True, "is_parallel": False, **rules})
        text = grammar_of(FORMATS[name].forced, self._rules, tokenizer.added_ids.get)
        self.constraint = Constraint(ConstraintKind.GRAMMAR, text)
        self._syntax = AnswerSyntax(FORMATS[name], has_reasoning=True, template_knows_tools=True)

    async def takes(self, text: str) -> bool:
        """Return whether a text is a whole answer."""
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False)
            guide = await self._grammars.guide(self.constraint, (EOS,), ids)
        except BadRequest:
            return False
        return guide.matcher.is_accepting()

    async def walk(self, seed: int) -> str:
        guide: Guide = await self._grammars.guide(self.constraint, (EOS,))
        rng, ids = random.Random(seed), list[int]()
        for _ in range(600):
            if guide.is_complete:
                break
            (mask,) = self._writer.write([guide], [True])
            assert not isinstance(mask, BadRequest), mask
            allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()
            token = EOS if EOS in allowed and rng.random() < 0.5 else rng.choice(allowed)
            if token == EOS:
                break
            guide.take([token])
            ids.append(token)
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def read(self, text: str) -> tuple[str, list[tuple[str, Any]]]:
        """Return content and calls, reasoning left out."""
        reading = AnswerReading(
            SCHEMAS, is_forced=True, has_reasoning=self._rules.has_reasoning, is_opened=self._rules.is_opened
        )
        reader = reader_of(self._syntax, reading)
        content, calls = "", list[tuple[str, Any]]()
        for part in joined([*reader.push(text), *reader.finish()]):
            if isinstance(part, CallBegun):
                calls.append((part.name, None))
            elif isinstance(part, CallArguments):
                calls[-1] = (calls[-1][0], json.loads(part.text))
            elif isinstance(part, ContentPart):
                content += part.text
        for name, arguments in calls:
            jsonschema.validate(arguments, SCHEMAS[name])
        return content, calls


@pytest.mark.parametrize("name", FORMATS)
async def test_forced_calls_are_read_back(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    one, many = Walker(tmp_path, tokenizer, name), Walker(tmp_path, tokenizer, name, is_parallel=True)
    found, numbers = set[str](), set[int]()
    for seed in range(25):
        content, calls = one.read(await one.walk(seed))
        assert (content, len(calls)) == ("", 1)
        found.add(calls[0][0])
        content, calls = many.read(await many.walk(seed))
        assert content == ""
        numbers.add(len(calls))
    assert found == set(SCHEMAS)
    assert len(numbers) > 1
    assert max(numbers) <= MAX_FORCED_CALLS


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("is_opened", [False, True])
async def test_reasoning_goes_before_forced_calls(
    name: str, is_opened: bool, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    walker = Walker(tmp_path, tokenizer, name, has_reasoning=True, is_opened=is_opened)
    plain = await Walker(tmp_path, tokenizer, name).walk(1)
    begin = "" if is_opened else "<think>"
    text = f"{begin}hm <b> no\n</think>\n\n{plain}"
    assert await walker.takes(text)
    assert await walker.takes(plain) is not is_opened
    content, calls = walker.read(text)
    assert (content, len(calls)) == ("", 1)
    assert not await walker.takes(f"{begin}hm</think>\n\nplain")


@pytest.mark.parametrize("name", FORMATS)
async def test_calls_that_the_model_may_make_keep_their_schemas(
    name: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    walker = Walker(tmp_path, tokenizer, name, is_required=False)
    forced = Walker(tmp_path, tokenizer, name)
    call = await forced.walk(3)
    assert await walker.takes("just <b>text</b>, nothing else.")
    assert await walker.takes(call)
    assert not await walker.takes(call.replace("name", "nome"))
    free = [await walker.walk(seed) for seed in range(10)]
    assert any(free)
    if name != "llama":
        assert await walker.takes(f"First this.\n{call}")
        assert walker.read(f"First this.\n{call}")[0] == "First this.\n"
    if name == "llama":
        assert not await walker.takes('{"name": "weather", "parameters": {}}')


@pytest.mark.parametrize("name", FORMATS)
async def test_an_answer_of_a_schema_or_calls(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    walker = Walker(tmp_path, tokenizer, name, is_required=False, answer_schema=ANSWER)
    call = await Walker(tmp_path, tokenizer, name).walk(5)
    assert await walker.takes(call)
    assert await walker.takes('{"ok": true}')
    assert walker.read('{"ok": true}') == ('{"ok": true}', [])
    assert not await walker.takes("text")
    named = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    walker = Walker(tmp_path, tokenizer, name, is_required=False, answer_schema=named)
    assert await walker.takes('{"name": "nobody"}')
    assert await walker.takes(call)
    walker = Walker(tmp_path, tokenizer, name, is_required=False, answer_schema=ANSWER)
    for seed in range(10):
        content, calls = walker.read(await walker.walk(seed))
        assert (content == "") == bool(calls)


async def test_reasoning_goes_before_an_answer_of_a_schema(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rules = {"schemas": {}, "is_required": False, "answer_schema": ANSWER, "has_reasoning": True}
    walker = Walker(tmp_path, tokenizer, "hermes", **rules)
    assert await walker.takes('<think>\nhm\n</think>\n\n{"ok": false}')
    assert await walker.takes('{"ok": false}')
    assert not await walker.takes("<think>\nhm\n</think>\n\nfalse")
    reader = reader_of(AnswerSyntax(None, True, False), AnswerReading(has_reasoning=True))
    parts = [*reader.push('<think>\nhm\n</think>\n\n{"ok": false}'), *reader.finish()]
    assert parts == [ReasoningPart("hm"), ContentPart('{"ok": false}')]
