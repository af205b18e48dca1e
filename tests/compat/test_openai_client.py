"""OpenAI's asynchronous client: every way to ask, every kind of failure, against scripted workers."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

from shared.errors import BadRequest, DeadlineExceeded, Internal, Overloaded, WorkerLost
from shared.ids import WorkerId
from shared.proto import prfaas_pb2 as pb
from tests.compat.conftest import client_of
from tests.support.gateway import (
    MAX_MODEL_LEN,
    VOCAB_SIZE,
    Call,
    ScriptedSuite,
    bytes_of,
    hangs,
    ids_of,
    prefills,
    raises,
    running_suite,
    says,
)
from tests.support.waiting import LIMIT_S, eventually

HI: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
TEXTS = [
    "hello",
    "naïve café",
    "日本語のテキスト",
    "👩‍👩‍👧‍👦 family",
    "\u0000\u0001 control",
    'quotes " and \\ slashes',
    "  spaces  ",
]
NOT_SERVED = "endpoint_not_supported"


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


# Headers, retries, timeouts, hanging up


async def test_headers_of_an_answer(client: AsyncOpenAI) -> None:
    raw = await client.chat.completions.with_raw_response.create(
        model="tiny", messages=HI, extra_headers={"X-Request-Id": "mine-1"}
    )
    assert raw.headers["x-request-id"] == "mine-1"
    assert raw.status_code == 200
    answer = raw.parse()
    assert answer._request_id == "mine-1"
    assert answer.id == "chatcmpl-mine-1"


async def test_headers_of_a_stream(client: AsyncOpenAI) -> None:
    async with client.completions.with_streaming_response.create(
        model="tiny", prompt="hello", stream=True, max_tokens=5
    ) as raw:
        assert raw.headers["content-type"] == "text/event-stream; charset=utf-8"
        lines = [line async for line in raw.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"


async def test_an_error_names_its_request(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.completions.create(model="tiny", prompt="", extra_headers={"X-Request-Id": "mine-2"})
    assert caught.value.request_id == "mine-2"


async def test_a_request_is_tried_again_when_the_server_says_when(suite: ScriptedSuite) -> None:
    suite.decode.behave = raises(Overloaded("full", retry_after_s=1))

    async def recovers() -> None:
        await suite.decode.called.wait()
        suite.decode.behave = says("fine")

    async with client_of(suite, max_retries=4) as client:
        recovering = asyncio.create_task(recovers())
        answer = await client.completions.create(model="tiny", prompt="hello")
        await recovering
    assert answer.choices[0].text == "fine"
    assert len(suite.decode.calls) >= 2


async def test_too_many_requests(tmp_path: Path) -> None:
    async with running_suite(tmp_path, max_requests=1) as suite, client_of(suite) as client:
        suite.decode.behave = hangs
        first = asyncio.create_task(client.completions.create(model="tiny", prompt="hello"))
        await suite.decode.called.wait()
        with pytest.raises(openai.RateLimitError) as caught:
            await client.completions.create(model="tiny", prompt="hello")
        assert caught.value.code == "overloaded"
        assert int(caught.value.response.headers["Retry-After"]) >= 1
        first.cancel()
        await asyncio.wait({first})


async def test_a_client_that_has_waited_long_enough(suite: ScriptedSuite, client: AsyncOpenAI) -> None:
    suite.decode.behave = hangs
    with pytest.raises(openai.APITimeoutError):
        await client.completions.create(model="tiny", prompt="hello", timeout=0.2)
    await asyncio.wait_for(suite.decode.calls[0].over.wait(), LIMIT_S)
    assert suite.decode.calls[0].cancelled


async def test_a_stream_that_is_closed_ends_the_request(suite: ScriptedSuite, lax: AsyncOpenAI) -> None:
    suite.decode.behave = says("hello there " * 50, pause_s=0.02)
    stream = await lax.completions.create(model="tiny", prompt="hello", max_tokens=500, stream=True)
    await anext(aiter(stream))
    await stream.close()
    await asyncio.wait_for(suite.decode.calls[0].over.wait(), LIMIT_S)
    assert suite.decode.calls[0].cancelled


async def test_a_task_that_is_cancelled_ends_the_request(suite: ScriptedSuite, client: AsyncOpenAI) -> None:
    suite.decode.behave = hangs
    asking = asyncio.create_task(client.chat.completions.create(model="tiny", messages=HI))
    await suite.decode.called.wait()
    asking.cancel()
    await asyncio.wait({asking})
    await asyncio.wait_for(suite.decode.calls[0].over.wait(), LIMIT_S)

    async def is_idle() -> bool:
        return suite.inflight.count == 0

    await eventually(is_idle)


async def test_many_at_a_time(client: AsyncOpenAI) -> None:
    asked = [client.completions.create(model="tiny", prompt=f"prompt {i}", max_tokens=5) for i in range(30)]
    assert [answer.choices[0].text for answer in await asyncio.gather(*asked)] == ["hello"] * 30


# Failures become the client's exceptions


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"presence_penalty": 9}, "presence_penalty"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {str(VOCAB_SIZE): 1}}, "logit_bias"),
        ({"stop": [""]}, "stop[0]"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"web_search_options": {"search_context_size": "low"}}, "web_search_options"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
        ({"extra_body": {"use_beam_search": True}}, "use_beam_search"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
    ],
)
async def test_what_is_wrong_is_named(client: AsyncOpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="tiny", messages=HI, **fields)
    assert (caught.value.status_code, caught.value.param) == (400, param)
    assert caught.value.type == "invalid_request_error"
    assert caught.value.code == "invalid_request"


@pytest.mark.parametrize("prompt", ["", [], [VOCAB_SIZE], ["a", ""]])
async def test_prompts_that_cannot_be(client: AsyncOpenAI, prompt: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.completions.create(model="tiny", prompt=prompt)
    assert caught.value.param is not None
    assert caught.value.param.startswith("prompt")


async def test_pictures_are_refused(client: AsyncOpenAI) -> None:
    parts: Any = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": parts}])
    assert caught.value.param == "messages[0].content[0].type"


async def test_a_context_that_is_too_long(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length") as caught:
        await client.completions.create(model="tiny", prompt="x" * MAX_MODEL_LEN)
    assert caught.value.code == "context_length_exceeded"


async def test_another_model(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'gpt-4' does not exist"):
        await client.chat.completions.create(model="gpt-4", messages=HI)


@pytest.mark.parametrize(
    ("error", "expected", "code"),
    [
        (BadRequest("no"), openai.BadRequestError, "invalid_request"),
        (Overloaded("full"), openai.RateLimitError, "overloaded"),
        (DeadlineExceeded("late"), openai.InternalServerError, "deadline_exceeded"),
        (Internal("broken"), openai.InternalServerError, "internal_error"),
    ],
)
async def test_failures_of_a_worker(
    suite: ScriptedSuite, client: AsyncOpenAI, error: Exception, expected: type[openai.APIStatusError], code: str
) -> None:
    suite.decode.behave = raises(error)
    with pytest.raises(expected) as caught:
        await client.completions.create(model="tiny", prompt="hello")
    assert caught.value.code == code


async def test_no_worker_at_all(suite: ScriptedSuite, client: AsyncOpenAI) -> None:
    suite.parts.registry.lost(WorkerId("decode-west"))
    with pytest.raises(openai.InternalServerError) as caught:
        await client.completions.create(model="tiny", prompt="hello")
    assert (caught.value.status_code, caught.value.code) == (503, "no_worker")


async def test_a_stream_that_breaks_off_is_an_error_not_an_end(suite: ScriptedSuite, lax: AsyncOpenAI) -> None:
    async def breaks(call: Call) -> AsyncIterator[pb.Tokens]:
        yield pb.Tokens(ids=ids_of("a"))
        raise WorkerLost("gone")

    suite.decode.behave = breaks
    stream = await lax.completions.create(model="tiny", prompt="hello", stream=True)
    texts = [(await anext(stream)).choices[0].text]
    with pytest.raises(openai.APIError) as caught:
        await anext(stream)
    assert texts == ["a"]
    assert caught.value.code in ("worker_lost", "no_worker")


async def test_nobody_listens() -> None:
    async with AsyncOpenAI(base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.APIConnectionError):
            await client.models.list()


# What this server does not have


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.embeddings.create(model="tiny", input="hello"),
        lambda client: client.images.generate(prompt="a cat"),
        lambda client: client.audio.speech.create(model="tiny", voice="alloy", input="hello"),
        lambda client: client.audio.transcriptions.create(model="tiny", file=b"RIFF"),
        lambda client: client.moderations.create(input="hello"),
        lambda client: client.files.list(),
        lambda client: client.batches.list(),
        lambda client: client.fine_tuning.jobs.list(),
        lambda client: client.vector_stores.list(),
    ],
)
async def test_endpoints_that_are_not_there_say_so_at_once(client: AsyncOpenAI, ask: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="this server has no") as caught:
        await ask(client)
    assert caught.value.code == NOT_SERVED
