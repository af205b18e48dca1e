"""Tools and reasoning over HTTP: what the model is told and held to, and what clients get of its answers."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shared.errors import WorkerLost
from shared.proto import prfaas_pb2 as pb
from tests.support.gateway import EOS, Call, ScriptedSuite, bytes_of, events_of, ids_of, running_suite, says

USER = [{"role": "user", "content": "hi"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "Tells the weather.", "parameters": PARAMETERS},
}
NOW = {"type": "function", "function": {"name": "now"}}
ARGUMENTS = '{"city": "São Paulo"}'
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
XML = "<tool_call>\n<function=weather>\n<parameter=city>\nSão Paulo\n</parameter>\n</function>\n</tool_call>"
NOW_CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
QWEN3 = (
    "{% if tools %}tools: {{ tools | tojson }} as <tool_call>{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% for c in m.tool_calls or [] %}[{{ c.function.name }}({{ c.function.arguments.city }})]{% endfor %}"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{% if m.tool_call_id %}#{{ m.tool_call_id }}{% endif %}|{% endfor %}"
    "{{ mood }}{{ reasoning_effort }}{% for d in documents or [] %}{{ d.text }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% if opened %}<think>\n{% endif %}{% endif %}"
)
QWEN_CODER = "{% if tools %}<function=x>{{ tools | length }}{% endif %}{{ messages[-1].content }}"
LLAMA = "{% if tools %}<|python_tag|>{{ tools | length }}{% endif %}{{ messages[-1].content }}"


@pytest.fixture
async def suite(tmp_path: Path) -> AsyncIterator[ScriptedSuite]:
    """Its template knows no tools."""
    async with running_suite(tmp_path) as suite:
        yield suite


@pytest.fixture
async def taught(tmp_path: Path) -> AsyncIterator[ScriptedSuite]:
    """Its template has tools and reasoning, as Qwen3's has."""
    async with running_suite(tmp_path, chat_template=QWEN3) as suite:
        yield suite


async def chat(suite: ScriptedSuite, **body: Any) -> dict[str, Any]:
    async with suite.client.post("/v1/chat/completions", json={"messages": USER, **body}) as response:
        assert response.status == 200, await response.text()
        answer: dict[str, Any] = await response.json()
        return answer


async def chat_streamed(suite: ScriptedSuite, **body: Any) -> list[Any]:
    full = {"messages": USER, "stream": True, **body}
    async with suite.client.post("/v1/chat/completions", json=full) as response:
        assert response.status == 200, await response.text()
        events = await events_of(response)
    assert events.pop() == "[DONE]"
    return events


async def refused(suite: ScriptedSuite, **body: Any) -> dict[str, Any]:
    before = len(suite.decode.calls)
    async with suite.client.post("/v1/chat/completions", json={"messages": USER, **body}) as response:
        assert response.status == 400, await response.text()
        error: dict[str, Any] = (await response.json())["error"]
    assert len(suite.decode.calls) == before
    return error


def message_of(events: list[Any], index: int = 0) -> tuple[dict[str, Any], str | None]:
    """Put a choice together as the clients do."""
    message: dict[str, Any] = {}
    reason = None
    for choice in (choice for event in events for choice in event["choices"] if choice["index"] == index):
        for key, value in choice["delta"].items():
            if key == "tool_calls":
                calls = message.setdefault("tool_calls", [])
                for call in value:
                    if call["index"] == len(calls):
                        calls.append(call | {"function": {**call["function"]}})
                    else:
                        assert "id" not in call
                        assert "name" not in call["function"]
                        calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
            else:
                message[key] = message.get(key, "") + value
        reason = choice["finish_reason"] or reason
    return message, reason


def prompt_of(call: Call) -> str:
    return bytes_of(call.request.token_ids).decode()


def calls_of(message: dict[str, Any]) -> list[tuple[str, str]]:
    assert all(call["id"].startswith("call_") and call["type"] == "function" for call in message["tool_calls"])
    assert len({call["id"] for call in message["tool_calls"]}) == len(message["tool_calls"])
    return [(call["function"]["name"], call["function"]["arguments"]) for call in message["tool_calls"]]


@pytest.mark.parametrize("stream", [False, True])
async def test_calls_that_the_model_chose_to_make(suite: ScriptedSuite, stream: bool) -> None:
    suite.decode.behave = says(f"I look.\n{CALL}\n{NOW_CALL}", finish=pb.FINISH_REASON_STOP)
    body = {"tools": [WEATHER, NOW], "n": 2}
    for index in range(2):
        if stream:
            message, reason = message_of(await chat_streamed(suite, **body), index)
        else:
            choice = (await chat(suite, **body))["choices"][index]
            message, reason = choice["message"], choice["finish_reason"]
        assert (message["role"], message["content"], reason) == ("assistant", "I look.\n", "tool_calls")
        assert calls_of(message) == [("weather", ARGUMENTS), ("now", "{}")]
    assert not suite.decode.calls[-1].request.sampling.HasField("constraint")
    one = (await chat(suite, tools=[WEATHER, NOW], parallel_tool_calls=False))["choices"][0]["message"]
    assert calls_of(one) == [("weather", ARGUMENTS)]


async def test_arguments_are_streamed_as_they_come(suite: ScriptedSuite) -> None:
    suite.decode.behave = says(CALL, finish=pb.FINISH_REASON_STOP, pause_s=0.002)
    events = await chat_streamed(suite, tools=[WEATHER])
    fragments = [
        call["function"]["arguments"] for event in events for call in event["choices"][0]["delta"].get("tool_calls", [])
    ]
    assert fragments[0] == ""
    assert "".join(fragments) == ARGUMENTS
    assert len(fragments) > 5
    assert not any(event["choices"][0]["delta"].get("content") for event in events)


async def test_answers_without_calls_are_as_they_were(suite: ScriptedSuite) -> None:
    suite.decode.behave = says("<b>no</b> call", finish=pb.FINISH_REASON_STOP)
    choice = (await chat(suite, tools=[WEATHER]))["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "<b>no</b> call"}
    assert choice["finish_reason"] == "stop"
    suite.decode.behave = says(CALL, finish=pb.FINISH_REASON_STOP)
    for body in ({}, {"tools": [WEATHER], "tool_choice": "none"}):
        choice = (await chat(suite, **body))["choices"][0]
        assert choice["message"] == {"role": "assistant", "content": CALL}
        assert "weather" not in prompt_of(suite.decode.calls[-1])
    suite.decode.behave = says(CALL[:50])
    choice = (await chat(suite, tools=[WEATHER], max_tokens=50))["choices"][0]
    assert choice["finish_reason"] == "length"
    assert ARGUMENTS.startswith(calls_of(choice["message"])[0][1])


async def test_a_template_without_tools_is_told_of_them_in_words(suite: ScriptedSuite) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
    messages = [
        {"role": "system", "content": "Be brief."},
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call, call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "wet"},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "cold"}]},
    ]
    await chat(suite, messages=messages, tools=[WEATHER])
    prompt = prompt_of(suite.decode.calls[-1])
    assert prompt.startswith("System: Be brief.\n\n# Tools")
    assert json.dumps(WEATHER) in prompt
    assert f"Assistant: {CALL}\n{CALL}\n" in prompt
    told = "<tool_response>\nwet\n</tool_response>\n<tool_response>\ncold\n</tool_response>"
    assert prompt.endswith(f"User: {told}\nAssistant:")
    await chat(suite, messages=messages)
    assert "# Tools" not in prompt_of(suite.decode.calls[-1])
    assert told in prompt_of(suite.decode.calls[-1])


async def test_a_template_with_tools_is_told_all(taught: ScriptedSuite) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
    messages = [
        *USER,
        {"role": "assistant", "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "call_1", "content": "wet"},
    ]
    await chat(
        taught,
        messages=messages,
        tools=[WEATHER],
        chat_template_kwargs={"mood": "good"},
        reasoning_effort="low",
        documents=[{"text": "doc"}],
    )
    assert prompt_of(taught.decode.calls[-1]) == (
        f"tools: {json.dumps([WEATHER])} as <tool_call>user: hi|assistant: [weather(São Paulo)]<think>hm</think>|"
        "tool: wet#call_1|goodlowdocassistant: "
    )
    last = {"role": "assistant", "content": "The sky"}
    await chat(taught, messages=[*USER, last], continue_final_message=True, add_generation_prompt=False)
    assert prompt_of(taught.decode.calls[-1]) == "user: hi|assistant: The sky"


@pytest.mark.parametrize(
    ("template", "forced", "text"),
    [
        (QWEN3, CALL, CALL),
        (QWEN_CODER, CALL, XML),
        (LLAMA, f'{{"name": "weather", "parameters": {ARGUMENTS}}}', f'{{"name":"weather","parameters":{ARGUMENTS}}}'),
    ],
)
async def test_the_template_says_the_format(template: str, forced: str, text: str, tmp_path: Path) -> None:
    async with running_suite(tmp_path, chat_template=template) as suite:
        for said, body in ((text, {}), (forced, {"tool_choice": "required"})):
            suite.decode.behave = says(said, finish=pb.FINISH_REASON_STOP)
            choice = (await chat(suite, tools=[WEATHER], **body))["choices"][0]
            assert calls_of(choice["message"]) == [("weather", ARGUMENTS)]
            assert (choice["message"]["content"], choice["finish_reason"]) == (None, "tool_calls")
        assert suite.decode.calls[-1].request.sampling.constraint.kind == pb.CONSTRAINT_KIND_GRAMMAR


async def test_the_parsers_are_settings(tmp_path: Path) -> None:
    async with running_suite(tmp_path, chat_template=QWEN3, tool_parser="none", reasoning_parser="none") as suite:
        error = await refused(suite, tools=[WEATHER])
        assert (error["param"], error["code"]) == ("tools", "invalid_request")
        suite.decode.behave = says(f"<think>x</think>{CALL}")
        message = (await chat(suite))["choices"][0]["message"]
        assert message == {"role": "assistant", "content": f"<think>x</think>{CALL}"}


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", ["weather", "now"]),
        ({"type": "function", "function": {"name": "now"}}, ["now"]),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [{"type": "function", "function": {"name": "weather"}}],
                },
            },
            ["weather"],
        ),
    ],
)
async def test_required_calls_are_a_grammar(suite: ScriptedSuite, choice: Any, names: list[str]) -> None:
    suite.decode.behave = says(NOW_CALL, finish=pb.FINISH_REASON_STOP)
    await chat(suite, tools=[WEATHER, NOW], tool_choice=choice)
    sampling = suite.decode.calls[-1].request.sampling
    assert sampling.constraint.kind == pb.CONSTRAINT_KIND_GRAMMAR
    assert [name for name in ("weather", "now") if f'\\"{name}\\"' in sampling.constraint.text] == names
    assert "weather" in prompt_of(suite.decode.calls[-1])


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [WEATHER] * 129}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "no"}}}, "tool_choice"),
        (
            {
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}],
                "tool_choice": "required",
            },
            "tools",
        ),
        (
            {
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}, "strict": True}}],
            },
            "tools",
        ),
        (
            {
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"description": "x" * 70_000}}}],
                "tool_choice": "required",
            },
            "tools",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]},
            "tools",
        ),
        ({"tools": [WEATHER], "guided_regex": "a"}, "guided_regex"),
        (
            {"tools": [WEATHER], "tool_choice": "required", "response_format": {"type": "json_object"}},
            "response_format",
        ),
        (
            {
                "messages": [
                    *USER,
                    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
                ]
            },
            "messages",
        ),
        ({"continue_final_message": True}, "continue_final_message"),
    ],
)
async def test_what_cannot_be_is_refused_by_its_name(suite: ScriptedSuite, body: dict[str, Any], param: str) -> None:
    error = await refused(suite, **body)
    assert (error["param"], error["code"]) == (param, "invalid_request")
    await suite.works()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("opened", [False, True])
async def test_reasoning_has_a_field_of_its_own(taught: ScriptedSuite, stream: bool, opened: bool) -> None:
    thought = "hm, <b>\n\nyes\n</think>"
    said = f"{'' if opened else '<think>'}\n{thought}"
    taught.decode.behave = says(f"{said}\n\nIt is.{CALL}", finish=pb.FINISH_REASON_STOP)
    body = {"tools": [WEATHER], "chat_template_kwargs": {"opened": opened}}
    if stream:
        events = await chat_streamed(taught, **body, stream_options={"include_usage": True})
        message, reason = message_of(events)
        usage = events[-1]["usage"]
    else:
        answer = await chat(taught, **body)
        (choice,) = answer["choices"]
        message, reason, usage = choice["message"], choice["finish_reason"], answer["usage"]
    assert message["reasoning"] == message["reasoning_content"] == "hm, <b>\n\nyes"
    assert (message["content"], reason) == ("It is.", "tool_calls")
    assert calls_of(message) == [("weather", ARGUMENTS)]
    assert usage["completion_tokens_details"] == {"reasoning_tokens": len(said)}


async def test_reasoning_beside_constraints(taught: ScriptedSuite) -> None:
    taught.decode.behave = says('<think>a</think>\n\n{"ok": 1}', finish=pb.FINISH_REASON_STOP)
    form = {"type": "json_object"}
    message = (await chat(taught, response_format=form))["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("a", '{"ok": 1}')
    constraint = taught.decode.calls[-1].request.sampling.constraint
    assert constraint.kind == pb.CONSTRAINT_KIND_GRAMMAR
    assert "reasoning" in constraint.text
    taught.decode.behave = says("<think>", finish=pb.FINISH_REASON_STOP)
    message = (await chat(taught, guided_choice=["<think>"]))["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "<think>"}


async def test_ids_and_log_probabilities_go_with_the_answer(suite: ScriptedSuite) -> None:
    async def behave(call: Call) -> AsyncIterator[pb.Tokens]:
        for number, token_id in enumerate(ids := [*ids_of(CALL), EOS]):
            reason = pb.FINISH_REASON_STOP if number == len(ids) - 1 else pb.FINISH_REASON_UNSPECIFIED
            logprobs = [pb.TokenLogprobs(logprob=-1.0)] if call.request.sampling.HasField("num_logprobs") else []
            yield pb.Tokens(ids=[token_id], finish_reason=reason, logprobs=logprobs)

    suite.decode.behave = behave
    body = {"tools": [WEATHER], "return_token_ids": True}
    events = await chat_streamed(suite, **body)
    ids = [token for event in events for choice in event["choices"] for token in choice.get("token_ids", [])]
    assert ids == [*ids_of(CALL), EOS]
    events = await chat_streamed(suite, tools=[WEATHER], logprobs=True)
    tokens = [
        token["token"].encode() if token["bytes"] is None else bytes(token["bytes"])
        for event in events
        for choice in event["choices"]
        for token in (choice["logprobs"] or {"content": []})["content"]
    ]
    assert b"".join(tokens).decode() == CALL
    assert calls_of(message_of(events)[0]) == [("weather", ARGUMENTS)]


async def test_a_call_goes_on_where_a_lost_worker_has_left_it(suite: ScriptedSuite) -> None:
    place = CALL.index("Paulo")

    async def breaks_off(_call: Call) -> AsyncIterator[pb.Tokens]:
        yield pb.Tokens(ids=ids_of(CALL[:place]))
        raise WorkerLost("gone")

    suite.decode.behave = breaks_off
    second = await suite.join("decode-west-2", "decode", "west", says(CALL[place:], finish=pb.FINISH_REASON_STOP))
    message: dict[str, Any] = {}
    reason: str | None = None
    for _ in range(2):  # whichever of both is asked first
        message, reason = message_of(await chat_streamed(suite, tools=[WEATHER], tool_choice="required"))
        if second.calls and suite.decode.calls:
            break
    assert (calls_of(message), reason) == ([("weather", ARGUMENTS)], "tool_calls")
    assert second.calls[-1].request.num_generated == len(ids_of(CALL[:place]))
    assert second.calls[-1].request.sampling.constraint == suite.decode.calls[-1].request.sampling.constraint
