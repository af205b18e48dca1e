"""OpenAI's asynchronous client: every way to ask, against scripted workers."""

import json
from collections.abc import AsyncIterator
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel

from shared.proto import prfaas_pb2 as pb
from tests.compat.conftest import HI
from tests.support.gateway import (
    MAX_MODEL_LEN,
    Call,
    ScriptedSuite,
    bytes_of,
    ids_of,
    prefills,
    says,
)

TEXTS = [
    "hello",
    "naïve café",
    "日本語のテキスト",
    "👩‍👩‍👧‍👦 family",
    "\u0000\u0001 control",
    'quotes " and \\ slashes',
    "  spaces  ",
]


class Capital(BaseModel):
    """What an answer is parsed into."""

    country: Literal["France", "Spain"]
    name: str
    inhabitants: int


def prompt_of(suite: ScriptedSuite) -> str:
    """Return the text that decode was asked to continue, by the latest call."""
    return bytes_of(list(suite.decode.calls[-1].request.token_ids)).decode()


def sampling_of(suite: ScriptedSuite) -> Any:
    return suite.decode.calls[-1].request.sampling


# Models


async def test_models_are_listed(client: AsyncOpenAI) -> None:
    (model,) = [model async for model in client.models.list()]
    assert (model.id, model.object, model.owned_by) == ("tiny", "model", "prfaas")


async def test_a_model_is_retrieved(client: AsyncOpenAI) -> None:
    model = await client.models.retrieve("tiny")
    assert model.id == "tiny"
    assert model.model_extra == {"max_model_len": MAX_MODEL_LEN}


async def test_a_model_that_is_not_there(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.models.retrieve("gpt-4")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


# Completions


async def test_a_completion(client: AsyncOpenAI) -> None:
    answer = await client.completions.create(model="tiny", prompt="hello", max_tokens=5)
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason, choice.index) == ("hello", "length", 0)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.usage is not None
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (5, 5, 10)


@pytest.mark.parametrize("text", TEXTS)
async def test_texts_of_all_kinds_go_and_come_unchanged(suite: ScriptedSuite, client: AsyncOpenAI, text: str) -> None:
    suite.decode.behave = says(text)
    answer = await client.completions.create(model="tiny", prompt=text, max_tokens=200)
    assert prompt_of(suite) == text
    assert answer.choices[0].text == text


@pytest.mark.parametrize("text", TEXTS)
async def test_streamed_texts_of_all_kinds_are_joined_to_the_same(
    suite: ScriptedSuite, client: AsyncOpenAI, text: str
) -> None:
    suite.decode.behave = says(text)
    stream = await client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": text}], max_tokens=200, stream=True
    )
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == text
    assert text in prompt_of(suite)


async def test_several_prompts_have_a_choice_each(client: AsyncOpenAI) -> None:
    answer = await client.completions.create(model="tiny", prompt=["a", "bc"], max_tokens=5, n=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3


@pytest.mark.parametrize("prompt", [ids_of("hello"), [ids_of("hello")]])
async def test_prompts_of_token_ids(suite: ScriptedSuite, client: AsyncOpenAI, prompt: Any) -> None:
    await client.completions.create(model="tiny", prompt=prompt)
    assert prompt_of(suite) == "hello"


async def test_echo_puts_the_prompt_in_front(client: AsyncOpenAI) -> None:
    answer = await client.completions.create(model="tiny", prompt="say: ", echo=True, max_tokens=5)
    assert answer.choices[0].text == "say: hello"


async def test_a_streamed_completion(lax: AsyncOpenAI) -> None:
    stream = await lax.completions.create(
        model="tiny", prompt="hello", max_tokens=5, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "hello"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 5
    assert len({chunk.id for chunk in chunks}) == 1


async def test_a_stream_without_usage_has_none(lax: AsyncOpenAI) -> None:
    stream = await lax.completions.create(model="tiny", prompt="hello", stream=True)
    assert all(chunk.usage is None for chunk in [chunk async for chunk in stream])


async def test_usage_so_far(lax: AsyncOpenAI) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    stream = await lax.completions.create(
        model="tiny",
        prompt="hello",
        max_tokens=3,
        stream=True,
        stream_options=options,
    )
    counts = [chunk.usage.completion_tokens async for chunk in stream if chunk.usage is not None]
    assert counts[-1] == 3
    assert counts == sorted(counts)
    assert len(counts) >= 2


# Chats


async def test_a_chat(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="tiny", messages=HI, max_completion_tokens=5)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "hello", "length")
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant"])
async def test_roles(suite: ScriptedSuite, client: AsyncOpenAI, role: Any) -> None:
    message: Any = {"role": role, "content": "be brief"}
    await client.chat.completions.create(model="tiny", messages=[message, *HI])
    assert "be brief" in prompt_of(suite)


async def test_parts_of_text_are_joined(suite: ScriptedSuite, client: AsyncOpenAI) -> None:
    parts: Any = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    await client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": parts}])
    assert "one\ntwo" in prompt_of(suite)


async def test_an_answer_goes_back_into_the_conversation(suite: ScriptedSuite, client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="tiny", messages=HI, max_tokens=5)
    said: Any = answer.choices[0].message
    await client.chat.completions.create(model="tiny", messages=[*HI, said, {"role": "user", "content": "go on"}])
    assert "hello" in prompt_of(suite)


async def test_a_streamed_chat(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="tiny", messages=HI, max_tokens=5, stream=True)
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "hello"
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "length"
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


async def test_the_clients_helper_for_streams(suite: ScriptedSuite, client: AsyncOpenAI) -> None:
    suite.decode.behave = says("hello there", finish=pb.FINISH_REASON_STOP)
    async with client.chat.completions.stream(model="tiny", messages=HI) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_completion()
    assert kinds.count("content.delta") >= 1
    assert kinds[-1] in ("content.done", "chunk")
    assert final.choices[0].message.content == "hello there"


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_several_answers(client: AsyncOpenAI, is_streamed: bool) -> None:
    texts = ["", "", ""]
    if is_streamed:
        stream = await client.chat.completions.create(model="tiny", messages=HI, n=3, max_tokens=5, stream=True)
        async for chunk in stream:
            for delta in chunk.choices:
                texts[delta.index] += delta.delta.content or ""
    else:
        answer = await client.chat.completions.create(model="tiny", messages=HI, n=3, max_tokens=5)
        texts = [choice.message.content or "" for choice in answer.choices]
    assert texts == ["hello"] * 3


async def test_a_chat_that_is_parsed_into_a_type(suite: ScriptedSuite, client: AsyncOpenAI) -> None:
    suite.decode.behave = says(
        '{"country":"France","name":"Paris","inhabitants":2100000}', finish=pb.FINISH_REASON_STOP
    )
    answer = await client.chat.completions.parse(
        model="tiny", messages=HI, response_format=Capital, max_completion_tokens=100
    )
    assert answer.choices[0].message.parsed == Capital(country="France", name="Paris", inhabitants=2_100_000)
    constraint = sampling_of(suite).constraint
    assert constraint.kind == pb.CONSTRAINT_KIND_JSON_SCHEMA
    assert set(json.loads(constraint.text)["properties"]) == {"country", "name", "inhabitants"}


async def test_a_parsed_chat_that_was_cut_off(suite: ScriptedSuite, client: AsyncOpenAI) -> None:
    suite.decode.behave = says('{"country":"France","name":"Paris"')
    with pytest.raises(openai.LengthFinishReasonError):
        await client.chat.completions.parse(model="tiny", messages=HI, response_format=Capital, max_tokens=10)


async def test_any_json_object(suite: ScriptedSuite, client: AsyncOpenAI) -> None:
    suite.decode.behave = says('{"a": 1}', finish=pb.FINISH_REASON_STOP)
    answer = await client.chat.completions.create(
        model="tiny", messages=HI, response_format={"type": "json_object"}, max_tokens=50
    )
    assert json.loads(answer.choices[0].message.content or "") == {"a": 1}
    assert sampling_of(suite).constraint.text == '{"type":"object"}'


# How tokens are chosen


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", 0.5), ("top_p", 0.5), ("presence_penalty", 1.5), ("frequency_penalty", -0.5), ("seed", 7)],
)
async def test_fields_of_sampling_reach_decode(
    suite: ScriptedSuite, client: AsyncOpenAI, field: str, value: float
) -> None:
    await client.chat.completions.create(model="tiny", messages=HI, **{field: value})  # type: ignore[call-overload]
    assert getattr(sampling_of(suite), field) == value


@pytest.mark.parametrize(
    ("field", "value"),
    [("top_k", 5), ("min_p", 0.25), ("repetition_penalty", 1.5), ("min_tokens", 3), ("stop_token_ids", [7])],
)
async def test_fields_of_vllm_reach_decode(suite: ScriptedSuite, client: AsyncOpenAI, field: str, value: Any) -> None:
    await client.chat.completions.create(model="tiny", messages=HI, extra_body={field: value})
    found = getattr(sampling_of(suite), field)
    assert (list(found)[:1] if isinstance(value, list) else found) == value


async def test_biases(suite: ScriptedSuite, client: AsyncOpenAI) -> None:
    await client.chat.completions.create(model="tiny", messages=HI, logit_bias={"5": -100})
    assert dict(sampling_of(suite).logit_bias) == {5: -100.0}


@pytest.mark.parametrize("stop", ["lo", ["xx", "lo"]])
async def test_strings_that_end_an_answer(client: AsyncOpenAI, stop: Any) -> None:
    answer = await client.chat.completions.create(model="tiny", messages=HI, stop=stop)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("hel", "stop")


async def test_a_stop_string_in_a_stream(lax: AsyncOpenAI) -> None:
    stream = await lax.completions.create(model="tiny", prompt="hello", stop="lo", stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "hel"
    assert chunks[-1].choices[0].finish_reason == "stop"


def says_with_logprobs(text: str) -> Any:
    """A decode worker that tells of each token how likely it was, and of one alternative."""

    async def behave(call: Call) -> AsyncIterator[pb.Tokens]:
        ids = ids_of(text)
        for number, token in enumerate(ids):
            told = pb.TokenLogprobs(logprob=-0.5, top_ids=[token, 66], top_logprobs=[-0.5, -1.5])
            reason = pb.FINISH_REASON_STOP if number == len(ids) - 1 else pb.FINISH_REASON_UNSPECIFIED
            yield pb.Tokens(ids=[token], logprobs=[told], finish_reason=reason)

    return behave


async def test_log_probabilities_of_a_chat(suite: ScriptedSuite, client: AsyncOpenAI) -> None:
    suite.decode.behave = says_with_logprobs("ab")
    answer = await client.chat.completions.create(model="tiny", messages=HI, logprobs=True, top_logprobs=2)
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    assert [(token.token, token.logprob, token.bytes) for token in told.content] == [
        ("a", -0.5, [97]),
        ("b", -0.5, [98]),
    ]
    assert all(len(token.top_logprobs) == 2 for token in told.content)
    assert sampling_of(suite).num_logprobs == 2


async def test_log_probabilities_of_a_completion(suite: ScriptedSuite, client: AsyncOpenAI) -> None:
    suite.decode.behave = says_with_logprobs("ab")
    answer = await client.completions.create(model="tiny", prompt="hello", logprobs=2)
    told = answer.choices[0].logprobs
    assert told is not None
    assert (told.tokens, told.token_logprobs, told.text_offset) == (["a", "b"], [-0.5, -0.5], [0, 1])


async def test_log_probabilities_of_a_stream(suite: ScriptedSuite, client: AsyncOpenAI) -> None:
    suite.decode.behave = says_with_logprobs("ab")
    stream = await client.chat.completions.create(model="tiny", messages=HI, logprobs=True, stream=True)
    told = [chunk.choices[0].logprobs async for chunk in stream]
    assert [token.token for one in told if one is not None for token in one.content or []] == ["a", "b"]


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "someone"},
        {"metadata": {"trace": "1"}},
        {"store": True},
        {"service_tier": "auto"},
        {"prompt_cache_key": "key"},
        {"safety_identifier": "someone"},
        {"modalities": ["text"]},
        {"verbosity": "medium"},
        {"prediction": {"type": "content", "content": "hello"}},
    ],
)
async def test_fields_that_change_nothing_may_be_there(client: AsyncOpenAI, fields: dict[str, Any]) -> None:
    answer = await client.chat.completions.create(model="tiny", messages=HI, max_tokens=5, **fields)
    assert answer.choices[0].message.content == "hello"


async def test_cached_tokens(suite: ScriptedSuite, client: AsyncOpenAI) -> None:
    suite.prefill.behave, suite.decode.behave = prefills(32), says("hello", computed=4)
    answer = await client.completions.create(model="tiny", prompt="x" * 100)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 100 - 32 - 4


async def test_a_long_prompt(suite: ScriptedSuite, client: AsyncOpenAI) -> None:
    prompt = "word " * ((MAX_MODEL_LEN - 16) // 5)
    answer = await client.completions.create(model="tiny", prompt=prompt)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(prompt)
    assert prompt_of(suite) == prompt
