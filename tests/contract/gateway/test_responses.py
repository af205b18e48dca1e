"""`/v1/responses`: what the items of a conversation come to, and what clients get, whole and in events."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from services.gateway.api.bodies.responses import ResponsesBody
from shared.errors import NoWorker
from shared.proto import prfaas_pb2 as pb
from tests.contract.gateway.test_tools import ARGUMENTS, CALL, NOW_CALL, PARAMETERS, QWEN3, prompt_of
from tests.support.gateway import Call, ScriptedSuite, ids_of, running_suite, says

WEATHER = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": False}
NOW = {"type": "function", "name": "now"}
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


@pytest.fixture
async def suite(tmp_path: Path) -> AsyncIterator[ScriptedSuite]:
    """Its template has tools and reasoning, as Qwen3's has."""
    async with running_suite(tmp_path, chat_template=QWEN3) as suite:
        yield suite


async def create(suite: ScriptedSuite, **body: Any) -> Response:
    async with suite.client.post("/v1/responses", json={"input": "hi", **body}) as response:
        assert response.status == 200, await response.text()
        return Response.model_validate(await response.json(), strict=True)


async def streamed(suite: ScriptedSuite, **body: Any) -> list[dict[str, Any]]:
    """Read a stream; each event has its name, and its number."""
    async with suite.client.post("/v1/responses", json={"input": "hi", "stream": True, **body}) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        text = (await response.read()).decode()
    events = []
    for number, block in enumerate(text.removesuffix("\n\n").split("\n\n")):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        EVENTS.validate_python(event)
        events.append(event)
    return events


async def refused(suite: ScriptedSuite, **body: Any) -> dict[str, Any]:
    async with suite.client.post("/v1/responses", json={"input": "hi", **body}) as response:
        assert response.status == 400, await response.text()
        error: dict[str, Any] = (await response.json())["error"]
    assert suite.decode.calls == []
    return error


def bare(response: dict[str, Any]) -> dict[str, Any]:
    """Return a response without what is drawn or timed."""
    output = [
        {key: value for key, value in item.items() if key not in ("id", "call_id")} for item in response["output"]
    ]
    return {**response, "id": "", "created_at": 0, "completed_at": 0, "output": output}


async def test_a_response_is_what_the_client_expects(suite: ScriptedSuite) -> None:
    suite.decode.behave = says("Hello.", finish=pb.FINISH_REASON_STOP)
    response = await create(
        suite, instructions="Be brief.", temperature=0.5, metadata={"a": "b"}, store=True, max_output_tokens=20
    )
    assert prompt_of(suite.decode.calls[0]) == "system: Be brief.|user: hi|assistant: "
    assert suite.decode.calls[0].request.sampling.max_tokens == 20
    assert suite.decode.calls[0].request.sampling.temperature == 0.5
    assert response.output_text == "Hello."
    assert (response.status, response.model, response.temperature) == ("completed", "tiny", 0.5)
    assert (response.instructions, response.metadata) == ("Be brief.", {"a": "b"})
    assert response.model_extra == {"store": False}
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (38, 6, 44)
    suite.decode.behave = says("Hello.")
    short = await create(suite, max_output_tokens=3)
    assert (short.status, short.output_text) == ("incomplete", "Hel")
    assert short.output[0].to_dict()["status"] == "incomplete"
    assert short.incomplete_details is not None
    assert short.incomplete_details.reason == "max_output_tokens"


@pytest.mark.parametrize(
    "said",
    [
        "Hello.",
        f"<think>\nhm\n</think>\n\nI look.\n{CALL}\n{NOW_CALL}",
        CALL,
        "<think>only",
        "<think>",
    ],
)
async def test_events_come_to_the_whole_response(suite: ScriptedSuite, said: str) -> None:
    suite.decode.behave = says(said, finish=pb.FINISH_REASON_STOP)
    body = {"tools": [WEATHER, NOW], "include": ["reasoning.encrypted_content"]}
    whole = await create(suite, **body)
    events = await streamed(suite, **body)
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    last = events[-1]["response"]
    expected = whole.model_dump(mode="json", exclude_unset=True)
    assert bare(last) == bare(expected)
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == last["output"]
    added = [event for event in events if event["type"] == "response.output_item.added"]
    assert [event["output_index"] for event in added] == list(range(len(done)))
    assert all(event["item"]["status"] == "in_progress" for event in added)
    for index, item in enumerate(done):
        told = "".join(e["delta"] for e in events if "delta" in e and e["output_index"] == index)
        assert told == (item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"])
    assert len({item["id"] for item in done}) == len(done)


async def test_calls_and_reasoning_are_items(suite: ScriptedSuite) -> None:
    suite.decode.behave = says(f"<think>\nhm\n</think>\n\nI look.\n{CALL}\n{NOW_CALL}", finish=pb.FINISH_REASON_STOP)
    response = await create(suite, tools=[WEATHER, NOW])
    reasoning, message, weather, now = response.output
    assert reasoning.type == "reasoning"
    assert reasoning.content is not None
    assert reasoning.content[0].text == "hm"
    assert (message.type, response.output_text) == ("message", "I look.\n")
    assert weather.type == now.type == "function_call"
    assert (weather.name, weather.arguments, now.name, now.arguments) == ("weather", ARGUMENTS, "now", "{}")
    assert weather.call_id != now.call_id
    assert response.usage is not None
    assert response.usage.output_tokens_details.reasoning_tokens == len("<think>\nhm\n</think>")
    items = [item.model_dump(mode="json", exclude_unset=True) for item in response.output]
    result = {"type": "function_call_output", "call_id": weather.call_id, "output": "wet"}
    await create(suite, input=[{"role": "user", "content": "hi"}, *items, result], tools=[WEATHER, NOW])
    assert prompt_of(suite.decode.calls[-1]).endswith(
        "user: hi|assistant: I look.\n[weather(São Paulo)][now()]<think>hm</think>|"
        f"tool: wet#{weather.call_id}|assistant: "
    )


async def test_items_of_all_kinds_are_messages(suite: ScriptedSuite) -> None:
    part = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    said = {"role": "assistant", "content": [{"type": "output_text", "text": "yes", "annotations": []}]}
    call = {"type": "function_call", "call_id": "c", "name": "weather", "arguments": '{"city": "x"}'}
    result = {"type": "function_call_output", "call_id": "c", "output": part}
    developer = {"type": "message", "role": "developer", "content": "dev"}
    await create(suite, input=[developer, {"role": "user", "content": part}, said, said, call, result, call])
    assert prompt_of(suite.decode.calls[-1]) == (
        "developer: dev|user: a\nb|assistant: yes|assistant: yes[weather(x)]|tool: a\nb#c|assistant: [weather(x)]|"
        "assistant: "
    )


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", ["weather", "now"]),
        ({"type": "function", "name": "now"}, ["now"]),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "now"}]}, ["now"]),
    ],
)
async def test_required_calls_are_a_grammar(suite: ScriptedSuite, choice: Any, names: list[str]) -> None:
    suite.decode.behave = says(NOW_CALL, finish=pb.FINISH_REASON_STOP)
    response = await create(suite, tools=[WEATHER, NOW], tool_choice=choice)
    constraint = suite.decode.calls[-1].request.sampling.constraint
    assert constraint.kind == pb.CONSTRAINT_KIND_GRAMMAR
    assert [name for name in ("weather", "now") if f'\\"{name}\\"' in constraint.text] == names
    assert response.model_dump(mode="json", exclude_unset=True)["tool_choice"] == choice


async def test_text_formats_constrain(suite: ScriptedSuite, tmp_path: Path) -> None:
    async with running_suite(tmp_path) as plain:
        plain.decode.behave = says('{"a":1}', finish=pb.FINISH_REASON_STOP)
        form = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
        response = await create(plain, text={"format": form})
        assert response.text is not None
        assert response.text.model_dump(mode="json", by_alias=True, exclude_unset=True) == {"format": form}
        constraint = plain.decode.calls[-1].request.sampling.constraint
        assert constraint == pb.Constraint(kind=pb.CONSTRAINT_KIND_JSON_SCHEMA, text='{"type":"object"}')
    bad = {"type": "json_schema", "name": "n", "schema": {"type": "objekt"}}
    assert (await refused(suite, text={"format": bad}))["param"] == "text"


async def test_log_probabilities_go_with_text(tmp_path: Path) -> None:
    async def behave(_call: Call) -> AsyncIterator[pb.Tokens]:
        ids = ids_of("Hi")
        for token_id in ids:
            reason = pb.FINISH_REASON_STOP if token_id == ids[-1] else pb.FINISH_REASON_UNSPECIFIED
            logprobs = pb.TokenLogprobs(logprob=-1.0, top_ids=ids[:1], top_logprobs=[-0.5])
            yield pb.Tokens(ids=[token_id], finish_reason=reason, logprobs=[logprobs])

    body = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    async with running_suite(tmp_path) as suite:
        suite.decode.behave = behave
        response = await create(suite, **body)
        (part,) = response.output[0].content  # type: ignore[union-attr, misc]
        assert [token.token for token in part.logprobs] == ["H", "i"]  # type: ignore[union-attr]
        events = await streamed(suite, **body)
        deltas = [event for event in events if event["type"] == "response.output_text.delta"]
        assert [token["token"] for event in deltas for token in event["logprobs"]] == ["H", "i"]
        assert suite.decode.calls[-1].request.sampling.num_logprobs == 1


@pytest.mark.parametrize(
    ("body", "param", "says_so"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "keeps no responses"),
        ({"conversation": "conv_1"}, "conversation", "keeps no conversations"),
        ({"background": True}, "background", "not supported"),
        ({"truncation": "auto"}, "truncation", "not supported"),
        ({"n": 2}, "n", "not supported"),
        ({"max_tokens": 5}, "max_tokens", "max_output_tokens"),
        ({"response_format": {"type": "json_object"}}, "response_format", "text.format"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "function"),
        ({"tools": [WEATHER, WEATHER]}, "tools", "name of its own"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "web_search"}}, "tool_choice.type", "function"),
        ({"include": ["file_search_call.results"]}, "include", "not supported"),
        ({"include": ["message.output_text.logprobs"]}, "include", "tools or reasoning"),
        ({"top_logprobs": 2}, "top_logprobs", "include"),
        ({"input": []}, "input", "at least 1"),
        ({"input": 5}, "input", ""),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]", "keeps no items"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type", ""),
        ({"input": "x" * 3000}, "input", "maximum context"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text", "schema"),
    ],
)
async def test_what_cannot_be_is_refused_by_its_name(
    suite: ScriptedSuite, body: dict[str, Any], param: str, says_so: str
) -> None:
    error = await refused(suite, **body)
    assert error["param"] == param
    assert says_so in error["message"]
    await suite.works()


async def test_salt_and_priority_of_a_request_reach_its_worker(suite: ScriptedSuite) -> None:
    await create(suite, cache_salt="acme", seed=7)
    request = suite.decode.calls[-1].request
    assert (request.salt, request.sampling.seed) == ("acme", 7)
    body = ResponsesBody(input="hi")
    body.cache_salt = "of the account"  # as access puts it there
    assert body.chat().cache_salt == "of the account"


async def test_nothing_is_stored(suite: ScriptedSuite) -> None:
    path = "/v1/responses/resp_1"
    for method, where in (("GET", path), ("DELETE", path), ("POST", f"{path}/cancel"), ("GET", f"{path}/input_items")):
        async with suite.client.request(method, where) as response:
            assert response.status == 404
            error = (await response.json())["error"]
        assert "keeps none" in error["message"]
        assert error["code"] == "not_found"


async def test_a_stream_that_breaks_off_says_so(suite: ScriptedSuite) -> None:
    async def behave(_call: Call) -> AsyncIterator[pb.Tokens]:
        yield pb.Tokens(ids=ids_of("a"))
        raise NoWorker("gone")

    suite.decode.behave = behave
    events = await streamed(suite)
    assert events[-1]["type"] == "error"
    assert events[-1]["code"]
    assert not any(event["type"] == "response.completed" for event in events)
