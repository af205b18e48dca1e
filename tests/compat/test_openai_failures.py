"""OpenAI's asynchronous client when something goes wrong: headers, retries, hanging up, and every kind of failure."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from shared.errors import BadRequest, DeadlineExceeded, Internal, Overloaded, WorkerLost
from shared.ids import WorkerId
from shared.proto import prfaas_pb2 as pb
from tests.compat.conftest import HI, client_of
from tests.support.gateway import (
    MAX_MODEL_LEN,
    VOCAB_SIZE,
    Call,
    ScriptedSuite,
    hangs,
    ids_of,
    raises,
    running_suite,
    says,
)
from tests.support.waiting import LIMIT_S, eventually

NOT_SERVED = "endpoint_not_supported"


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
