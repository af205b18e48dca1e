"""Constrained answers of real workers: whole, valid, and the same whoever goes on with them."""

import asyncio
import json
import random
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from services.decode.request import FinishReason, Request
from shared.errors import BadRequest
from shared.model.grammar.grammars import Grammars
from shared.model.text.tokenizer import Tokenizer
from shared.proto import prfaas_pb2 as pb
from shared.sampling.constraint import Constraint
from shared.sampling.params import SamplingParams
from tests.support.decoding import DecodeBench, decode_bench, words
from tests.support.engines import two_datacenters
from tests.support.parts import generation
from tests.support.served import served_tiny
from tests.support.structured import EOS, grammars_of, regex, save_tokenizer, schema
from tests.support.tiny import greedy_reference, prompt, tiny_model

OBJECT = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 2, "maxItems": 3},
        "n": {"type": "integer", "minimum": 10_000, "maximum": 99_999},
    },
    "required": ["name", "tags", "n"],
    "additionalProperties": False,
}
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 1.2, "seed": 3},
    "everything": {
        "temperature": 1.5,
        "top_k": 60,
        "min_p": 0.001,
        "seed": 11,
        "presence_penalty": 1.0,
        "repetition_penalty": 1.3,
        "logit_bias": {5: 2.0},
        "min_tokens": 5,
    },
}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_second_worker_goes_on_inside_an_object(kind: str, tmp_path: Path) -> None:
    tokenizer = save_tokenizer(tmp_path)
    constraint = pb.Constraint(kind=pb.CONSTRAINT_KIND_JSON_SCHEMA, text=json.dumps(OBJECT))
    sampling = {**KINDS[kind], "constraint": constraint, "stop_token_ids": [EOS]}
    tokens, num_tokens = prompt(90), 300
    async with two_datacenters("bytes", directory=tmp_path) as first:
        done = await first.generate(tokens, num_tokens, **sampling)
        assert done.finish_reason == pb.FINISH_REASON_STOP
        jsonschema.validate(json.loads(tokenizer.decode(done.ids)), OBJECT)
        whole = done.ids
    async with two_datacenters("bytes", directory=tmp_path) as second:
        for place in (1, len(whole) // 2, len(whole) - 1):
            left = {**sampling, "min_tokens": max(0, sampling.get("min_tokens", 0) - place)}
            begun = tokens + whole[:place]
            rest = await second.generate(begun, num_tokens - place, num_generated=place, **left)
            assert whole[:place] + rest.ids == whole, f"continued after {place}"
            assert rest.finish_reason == pb.FINISH_REASON_STOP
        with pytest.RaisesGroup(BadRequest):  # what was generated is no such answer's beginning
            await second.generate(tokens, 8, num_generated=5, num_blocks=0, **sampling)
        await second.assert_idle()


async def test_a_constraint_of_a_worker_that_cannot_be_compiled(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    async with two_datacenters("bytes", directory=tmp_path) as dcs:
        for text in ("(", "a(?=b)"):
            with pytest.RaisesGroup(BadRequest):
                broken = pb.Constraint(kind=pb.CONSTRAINT_KIND_REGEX, text=text)
                await dcs.generate(prompt(20), 6, prefill=False, constraint=broken)
        assert len((await dcs.generate(prompt(70), 6)).ids) == 6
        await dcs.assert_idle()


async def test_over_http_whole_and_streamed(tmp_path: Path) -> None:
    asked = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "color": {"enum": ["red", "blue"]}},
        "required": ["ok", "color"],
        "additionalProperties": False,
    }
    async with served_tiny(tmp_path) as tiny:
        body = {"prompt": prompt(90), "max_tokens": 200, "seed": 1}
        form = {"type": "json_schema", "json_schema": {"name": "n", "schema": asked}}
        answer = await tiny.complete(**body, response_format=form, n=3)
        texts = [choice["text"] for choice in answer["choices"]]
        assert [choice["finish_reason"] for choice in answer["choices"]] == ["stop"] * 3
        for text in texts:
            jsonschema.validate(json.loads(text), asked)
        assert texts[0] == (await tiny.complete(**body, structured_outputs={"json": asked}))["choices"][0]["text"]
        answer = await tiny.complete(**body, guided_choice=["yes", "no"])
        assert answer["choices"][0]["text"] in ("yes", "no")
        answer = await tiny.complete(**body, guided_regex="[a-c]{40}", stop="b")
        assert re.fullmatch("[ac]*", answer["choices"][0]["text"])
        short = await tiny.complete(**{**body, "max_tokens": 3}, guided_regex="[a-c]{40}")
        assert (len(short["choices"][0]["text"]), short["choices"][0]["finish_reason"]) == (3, "length")
        await tiny.dcs.assert_idle()


async def submit(
    bench: DecodeBench, grammars: Grammars, constraint: Constraint, seed: int, max_tokens: int = 400, **sampling: Any
) -> Request:
    params = SamplingParams(max_tokens, seed=seed, stop_token_ids=(EOS,), constraint=constraint, **sampling)
    guide = await grammars.guide(constraint, (EOS,))
    return bench.engine.submit(generation(bench.model, words(20, seed), sampling=params, guide=guide))


async def outcome(request: Request) -> tuple[list[int], FinishReason | None]:
    ids: list[int] = []
    reason = None
    async for event in request.events():
        ids += event.ids
        reason = event.finish_reason
    return ids, reason


async def test_a_request_that_was_preempted_goes_on_in_its_grammar(tmp_path: Path) -> None:
    tokenizer, grammars = save_tokenizer(tmp_path), grammars_of(tmp_path)
    wanted = regex("(ab|ba){100,120}")
    found = []
    for num_pages in (64, 6):
        async with decode_bench(tiny_model("bytes", num_pages)) as bench:
            requests = [await submit(bench, grammars, wanted, seed, 250) for seed in range(3)]
            found.append(await asyncio.gather(*map(outcome, requests)))
            assert (bench.metric("num_preemptions_total") > 0) == (num_pages == 6)
    assert found[0] == found[1]
    assert all(re.fullmatch(wanted.text, tokenizer.decode(ids)) for ids, _ in found[0])


async def test_neighbours_without_a_constraint_are_not_changed(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    grammars = grammars_of(tmp_path)
    async with decode_bench(tiny_model("bytes")) as bench:
        plain = [bench.submit(words(30, seed), 25) for seed in range(3)]
        bound = [await submit(bench, grammars, schema(OBJECT), seed) for seed in range(3)]
        found = await asyncio.gather(*map(outcome, [*plain, *bound]))
        for seed in range(3):
            assert found[seed][0] == greedy_reference("bytes", words(30, seed), 25)


class Shapes:
    """Draws schemas of common shapes, all of which have short answers."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def draw(self, depth: int = 2) -> dict[str, Any]:
        kinds = [self._string, self._integer, self._number, self._constant, self._simple]
        if depth:
            kinds += [self._object, self._object, self._array, self._any_of, self._reference]
        return self._rng.choice(kinds)(depth)

    def _string(self, depth: int) -> dict[str, Any]:
        rng = self._rng
        return rng.choice(
            [
                {"type": "string", "maxLength": rng.randint(0, 8)},
                {"type": "string", "minLength": 2, "maxLength": rng.randint(2, 6)},
                {"type": "string", "pattern": "^[a-c]{1,4}$"},
                {"type": "string", "format": rng.choice(["date", "uuid", "ipv4", "time"])},
                {"enum": rng.sample(["red", "grün", 'q"', "", "\n"], 2)},
            ]
        )

    def _integer(self, depth: int) -> dict[str, Any]:
        low = self._rng.randint(-500, 500)
        return {"type": "integer", "minimum": low, "maximum": low + self._rng.randint(0, 5000)}

    def _number(self, depth: int) -> dict[str, Any]:
        return {"type": "number", "exclusiveMinimum": self._rng.randint(-9, 0), "maximum": self._rng.randint(1, 99)}

    def _constant(self, depth: int) -> dict[str, Any]:
        return {"const": self._rng.choice([None, 1.5, "x", [1, "a"], {"k": True}])}

    def _simple(self, depth: int) -> dict[str, Any]:
        return {"type": self._rng.choice(["boolean", "null", ["boolean", "null"]])}

    def _object(self, depth: int) -> dict[str, Any]:
        names = self._rng.sample(["a", "b", "long name", "ü", "n0"], self._rng.randint(0, 4))
        required = [name for name in names if self._rng.random() < 0.7]
        properties = {name: self.draw(depth - 1) for name in names}
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    def _array(self, depth: int) -> dict[str, Any]:
        least = self._rng.randint(0, 2)
        return {"type": "array", "items": self.draw(depth - 1), "minItems": least, "maxItems": least + 2}

    def _any_of(self, depth: int) -> dict[str, Any]:
        return {"anyOf": [self.draw(depth - 1), self.draw(depth - 1)]}

    def _reference(self, depth: int) -> dict[str, Any]:
        return {"$defs": {"it": self.draw(0)}, "type": "array", "items": {"$ref": "#/$defs/it"}, "maxItems": 2}


def nested_reference(value: dict[str, Any]) -> bool:
    """Whether definitions stand below the top, where `#/$defs` does not find them."""
    inner = json.dumps({key: item for key, item in value.items() if key != "$defs"})
    return "$defs" in inner.replace("#/$defs", "") or ("$ref" in inner and "$defs" not in value)


@pytest.mark.slow
async def test_answers_of_any_shape_are_valid(tmp_path: Path) -> None:
    """A random model, 300 random schemas: what ends by itself is whole and valid; what is cut off need not be."""
    tokenizer, grammars = save_tokenizer(tmp_path), grammars_of(tmp_path)
    drawn = (Shapes(seed).draw() for seed in range(1000))
    schemas = [value for value in drawn if not nested_reference(value)][:300]
    assert len(schemas) == 300
    async with decode_bench(tiny_model("bytes", 512), max_batch=16, max_waiting=512) as bench:
        asked = [
            await submit(bench, grammars, schema(value), seed, temperature=0.0 if seed % 5 == 0 else 1.0)
            for seed, value in enumerate(schemas)
        ]
        found = await asyncio.gather(*map(outcome, asked))
    num_whole = sum(_is_valid(tokenizer, value, *answer) for value, answer in zip(schemas, found, strict=True))
    assert num_whole > 270


def _is_valid(tokenizer: Tokenizer, value: dict[str, Any], ids: list[int], reason: FinishReason | None) -> bool:
    """Check an answer that has ended by itself; return whether it has."""
    if reason is not FinishReason.STOP:
        return False
    text = tokenizer.decode(ids)
    jsonschema.validate(json.loads(text), value)
    return True
