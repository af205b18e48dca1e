"""Calls that real workers are held to: whole, valid, read back, and the same whoever goes on with them."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from services.gateway.syntax.formats import FORMATS
from services.gateway.syntax.grammar import CallRules, grammar_of
from shared.proto import prfaas_pb2 as pb
from tests.contract.gateway.test_tools import calls_of, message_of
from tests.support.engines import two_datacenters
from tests.support.gateway import events_of
from tests.support.served import ServedTiny, served_tiny
from tests.support.structured import EOS, save_tokenizer
from tests.support.tiny import prompt

PARAMETERS = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "tags"],
    "additionalProperties": False,
}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
SCHEMAS = {"paint": PARAMETERS, "now": NOTHING}
TOOLS = [
    {"type": "function", "function": {"name": "paint", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "now"}},
]
BODY = {
    "messages": [{"role": "user", "content": "Paint it, please."}],
    "tools": TOOLS,
    "max_tokens": 600,
    "parallel_tool_calls": False,
}


async def chat(tiny: ServedTiny, **body: Any) -> tuple[dict[str, Any], str | None]:
    async with tiny.client.post("/v1/chat/completions", json={**BODY, **body}) as response:
        assert response.status == 200, await response.text()
        if not body.get("stream"):
            (choice,) = (await response.json())["choices"]
            return choice["message"], choice["finish_reason"]
        events = await events_of(response)
    assert events.pop() == "[DONE]"
    return message_of(events)


async def test_required_and_named_calls_over_http(tmp_path: Path) -> None:
    async with served_tiny(tmp_path, model="bytes") as tiny:
        names = set[str]()
        for seed in range(6):
            whole, streamed = [
                await chat(tiny, tool_choice="required", seed=seed, stream=stream) for stream in (False, True)
            ]
            ((name, arguments),) = calls_of(whole[0])
            jsonschema.validate(json.loads(arguments), SCHEMAS[name])
            names.add(name)
            assert (whole[0]["content"], whole[1], streamed[1]) == (None, "tool_calls", "tool_calls")
            assert calls_of(streamed[0]) == [(name, arguments)]
        assert names == set(SCHEMAS)
        named = {"type": "function", "function": {"name": "paint"}}
        message, reason = await chat(tiny, tool_choice=named, seed=1, temperature=0)
        ((name, arguments),) = calls_of(message)
        assert (name, reason) == ("paint", "tool_calls")
        jsonschema.validate(json.loads(arguments), PARAMETERS)
        message, reason = await chat(tiny, tool_choice=named, max_tokens=50)
        assert (calls_of(message)[0][0], reason) == ("paint", "length")
        await tiny.dcs.assert_idle()


@pytest.mark.parametrize("name", FORMATS)
async def test_a_second_worker_goes_on_inside_arguments(name: str, tmp_path: Path) -> None:
    tokenizer = save_tokenizer(tmp_path)
    rules = CallRules({"paint": PARAMETERS}, is_required=True, is_parallel=False)
    text = grammar_of(FORMATS[name].forced, rules, tokenizer.added_ids.get)
    constraint = pb.Constraint(kind=pb.CONSTRAINT_KIND_GRAMMAR, text=text)
    sampling: dict[str, Any] = {"temperature": 1.0, "seed": 5, "constraint": constraint, "stop_token_ids": [EOS]}
    tokens, num_tokens = prompt(90), 400
    async with two_datacenters("bytes", directory=tmp_path) as first:
        done = await first.generate(tokens, num_tokens, **sampling)
        assert done.finish_reason == pb.FINISH_REASON_STOP
        whole = done.ids
    async with two_datacenters("bytes", directory=tmp_path) as second:
        for place in (1, len(whole) // 2, len(whole) - 1):
            rest = await second.generate(tokens + whole[:place], num_tokens - place, num_generated=place, **sampling)
            assert whole[:place] + rest.ids == whole, f"continued after {place}"
        await second.assert_idle()
