"""The HTTP API over scripted workers: shapes, streaming, usage, plans on the wire."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.errors import BadRequest, Overloaded, WorkerLost
from shared.ids import WorkerId
from shared.proto import prfaas_pb2 as pb
from tests.support.gateway import (
    BLOCK_TOKENS,
    EAST_POOL,
    EOS,
    FINGERPRINT,
    LAYOUT,
    MAX_MODEL_LEN,
    Call,
    ScriptedSuite,
    ScriptedWorker,
    announce,
    bytes_of,
    events_of,
    hangs,
    ids_of,
    prefills,
    raises,
    running_suite,
    says,
)
from tests.support.waiting import LIMIT_S, eventually, until

LONG = "x" * 100  # 6 prefix blocks of 16, 4 in the tail: above the offload threshold of 32 tokens


@pytest.fixture
async def suite(tmp_path: Path) -> AsyncIterator[ScriptedSuite]:
    async with running_suite(tmp_path) as suite:
        yield suite


async def test_completion_has_openai_shape_and_usage(suite: ScriptedSuite) -> None:
    suite.decode.behave = says("hello there", finish=pb.FINISH_REASON_LENGTH, computed=5)
    answer = await suite.complete(prompt="hello", max_tokens=11)
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["model"] == "tiny"
    assert answer["choices"] == [{"index": 0, "text": "hello there", "logprobs": None, "finish_reason": "length"}]
    assert answer["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 11,
        "total_tokens": 16,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    start = suite.decode.calls[0].request
    assert bytes_of(start.token_ids) == b"hello"
    assert (start.fingerprint, start.layout_hash, start.num_blocks) == (FINGERPRINT, LAYOUT.hash, 0)
    assert suite.prefill.calls == []


async def test_max_tokens_defaults_to_16_for_completions_and_to_the_context_for_chat(suite: ScriptedSuite) -> None:
    await suite.complete(prompt="hello")
    assert suite.decode.calls[-1].request.sampling.max_tokens == 16
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]}
    async with suite.client.post("/v1/chat/completions", json=body) as response:
        answer = await response.json()
    start = suite.decode.calls[-1].request
    assert bytes_of(start.token_ids) == b"User: a\nb\nAssistant:"
    assert start.sampling.max_tokens == MAX_MODEL_LEN - len(start.token_ids)
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "hello there"}


async def test_sampling_goes_to_decode_as_asked(suite: ScriptedSuite) -> None:
    await suite.complete(
        temperature=0.5, top_p=0.9, top_k=7, seed=-1, stop_token_ids=[3], ignore_eos=True, min_tokens=2
    )
    sampling = suite.decode.calls[0].request.sampling
    assert (sampling.temperature, sampling.top_k, sampling.seed) == (0.5, 7, 2**64 - 1)
    assert sampling.top_p == pytest.approx(0.9)
    assert (list(sampling.stop_token_ids), sampling.min_tokens) == ([3], 2)
    await suite.complete(stop_token_ids=[3])
    eos_ids = suite.decode.calls[1].request.sampling.stop_token_ids[1:]
    assert len(eos_ids) > 0  # the model's own ids end a generation unless they are ignored


async def test_a_missing_seed_is_drawn_anew_for_each_request(suite: ScriptedSuite) -> None:
    await suite.complete()
    await suite.complete()
    seeds = [call.request.sampling.seed for call in suite.decode.calls]
    assert len(set(seeds)) == 2


async def test_completion_stream_joins_to_the_whole_and_ends_with_usage(suite: ScriptedSuite) -> None:
    suite.decode.behave = says("héllo wörld", finish=pb.FINISH_REASON_STOP, pause_s=0.002, computed=5)
    body = {"prompt": "hello", "max_tokens": 20, "stream": True, "stream_options": {"include_usage": True}}
    async with suite.client.post("/v1/completions", json=body, headers={"X-Request-Id": "mine"}) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert response.headers["X-Request-Id"] == "mine"
        events = await events_of(response)
    assert events[-1] == "[DONE]"
    assert events[-2]["choices"] == []
    assert events[-2]["usage"]["completion_tokens"] == 13
    chunks = events[:-2]
    assert len(chunks) > 3
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "héllo wörld"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert {chunk["id"] for chunk in events[:-1]} == {"cmpl-mine"}


async def test_each_chunk_tells_the_usage_so_far_when_asked(suite: ScriptedSuite) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"prompt": "hello", "max_tokens": 3, "stream": True, "stream_options": options}
    async with suite.client.post("/v1/completions", json=body) as response:
        *chunks, last, done = await events_of(response)
    assert done == "[DONE]"
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 3
    assert chunks[-1]["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    assert last["usage"] == {**chunks[-1]["usage"], "prompt_tokens_details": {"cached_tokens": 5}}
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "hel"


async def test_usage_is_told_in_each_chunk_of_no_stream_that_tells_none_at_its_end(suite: ScriptedSuite) -> None:
    options = {"continuous_usage_stats": True}
    body = {"prompt": "hello", "stream": True, "stream_options": options}
    async with suite.client.post("/v1/completions", json=body) as response:
        chunks = await events_of(response)
    assert not any("usage" in chunk for chunk in chunks[:-1])


@pytest.mark.parametrize(("wanted", "kept"), [(3, "llo"), (5, "hello"), (99, "hello"), (-1, "hello"), (None, "hello")])
async def test_the_end_of_a_prompt_is_kept(suite: ScriptedSuite, wanted: int | None, kept: str) -> None:
    answer = await suite.complete(prompt="hello", truncate_prompt_tokens=wanted)
    assert bytes_of(list(suite.decode.calls[0].request.token_ids)).decode() == kept
    assert answer["usage"]["prompt_tokens"] == len(kept)


async def test_as_much_of_a_prompt_is_kept_as_fits(suite: ScriptedSuite) -> None:
    await suite.complete(prompt="x" * 5000 + "end", truncate_prompt_tokens=-1, max_tokens=10)
    (call,) = suite.decode.calls
    assert len(call.request.token_ids) == MAX_MODEL_LEN - 10
    assert bytes_of(list(call.request.token_ids)).endswith(b"end")


async def test_chat_stream_opens_with_the_role_and_has_no_usage_unless_asked(suite: ScriptedSuite) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
    async with suite.client.post("/v1/chat/completions", json=body) as response:
        events = await events_of(response)
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in events[:-1])
    assert text == "hello there"
    assert not any("usage" in chunk for chunk in events[:-1])


async def test_tokens_are_flushed_as_they_come(suite: ScriptedSuite) -> None:
    release = asyncio.Event()

    async def behave(call: Call) -> AsyncIterator[pb.Tokens]:
        async for message in says("ab")(call):
            yield message
            await release.wait()

    suite.decode.behave = behave
    async with suite.client.post("/v1/completions", json={"prompt": "p", "stream": True}) as response:
        first = await asyncio.wait_for(response.content.readline(), LIMIT_S)
        assert b'"text": "a"' in first
        release.set()
        assert (await events_of(response))[-1] == "[DONE]"


async def test_several_prompts_give_several_choices(suite: ScriptedSuite) -> None:
    async def behave(call: Call) -> AsyncIterator[pb.Tokens]:
        async for message in says(bytes_of(call.request.token_ids).decode().upper(), computed=1)(call):
            yield message

    suite.decode.behave = behave
    answer = await suite.complete(prompt=["one", "two", "three"])
    assert [choice["text"] for choice in answer["choices"]] == ["ONE", "TWO", "THREE"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["prompt_tokens"] == 11
    answer = await suite.complete(prompt=[ids_of("one"), ids_of("two")])
    assert [choice["text"] for choice in answer["choices"]] == ["ONE", "TWO"]
    async with suite.client.post("/v1/completions", json={"prompt": ["ab", "cd"], "stream": True}) as response:
        events = await events_of(response)
    texts = {0: "", 1: ""}
    for event in events[:-1]:
        texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert texts == {0: "AB", 1: "CD"}


async def test_a_stop_string_across_tokens_ends_text_and_cancels_decode(suite: ScriptedSuite) -> None:
    suite.decode.behave = says("one STOP two" * 20, pause_s=0.001)
    answer = await suite.complete(max_tokens=200, stop=["OP t", "nothing"])
    assert answer["choices"][0] == {"index": 0, "text": "one ST", "logprobs": None, "finish_reason": "stop"}
    assert answer["usage"]["completion_tokens"] == len("one STOP t")
    await asyncio.wait_for(suite.decode.calls[0].over.wait(), LIMIT_S)
    assert suite.decode.calls[0].cancelled
    answer = await suite.complete(max_tokens=200, stop="OP", include_stop_str_in_output=True)
    assert answer["choices"][0]["text"] == "one STOP"


async def test_the_end_token_counts_but_does_not_show(suite: ScriptedSuite) -> None:
    async def behave(_call: Call) -> AsyncIterator[pb.Tokens]:
        yield pb.Tokens(ids=[0, 1], computed_prompt_tokens=5)
        yield pb.Tokens(ids=[EOS], finish_reason=pb.FINISH_REASON_STOP)

    suite.decode.behave = behave
    answer = await suite.complete()
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert "<eos>" not in answer["choices"][0]["text"]
    assert answer["usage"]["completion_tokens"] == 3


async def test_a_long_prompt_is_prefilled_remotely_at_the_same_time(suite: ScriptedSuite) -> None:
    suite.prefill.behave = prefills(6 * BLOCK_TOKENS)
    suite.decode.behave = says("ok", computed=4)
    answer = await suite.complete(prompt=LONG, max_tokens=2)
    prefill, decode = suite.prefill.calls[0].request, suite.decode.calls[0].request
    assert prefill.num_blocks == decode.num_blocks == 6
    assert list(prefill.token_ids) == list(decode.token_ids)
    assert [(s.first, s.end, s.dc, list(s.nodes)) for s in decode.sources] == [(0, 6, "east", [EAST_POOL])]
    assert list(prefill.sources) == []
    assert decode.wait_ms > 1000
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert suite.metric("plans_total", kind="remote") == 1
    assert len(suite.parts.promises) == 0


async def test_the_same_prompt_again_needs_no_prefill_even_before_the_pools_have_said_so(suite: ScriptedSuite) -> None:
    suite.prefill.behave = prefills(6 * BLOCK_TOKENS)
    suite.decode.behave = says("ok", computed=4)
    await suite.complete(prompt=LONG, max_tokens=2)
    answer = await suite.complete(prompt=LONG, max_tokens=2)
    assert len(suite.prefill.calls) == 1
    again = suite.decode.calls[1].request
    assert (again.num_blocks, list(again.sources), again.wait_ms) == (6, [], 0)
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 96}
    assert suite.metric("plans_total", kind="none") == 1
    assert suite.metric("prefix_cache_hits_total", engine="gateway") == 96
    salted = await suite.complete(prompt=LONG, max_tokens=2, cache_salt="tenant")
    assert len(suite.prefill.calls) == 2  # another salt, other keys
    assert salted["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


async def test_cached_tokens_are_those_that_neither_worker_computed(suite: ScriptedSuite) -> None:
    suite.prefill.behave = prefills(48)  # said in two steps, the second total includes the first
    suite.decode.behave = says("ok", computed=4)
    answer = await suite.complete(prompt=LONG, max_tokens=2)
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 100 - 48 - 4}
    by_source = {s: suite.metric("prompt_tokens_by_source_total", source=s) for s in ("cache", "prefill", "decode")}
    assert by_source == {"cache": 48, "prefill": 48, "decode": 4}


async def test_prompts_of_one_moment_without_a_common_prefix_are_spread(suite: ScriptedSuite) -> None:
    other = await suite.join("prefill-east-2", "prefill", "east", prefills(0))
    all_hold_until_called(suite, other, 4)
    await asyncio.gather(*(suite.complete(prompt=letter * 100, max_tokens=1) for letter in "abcd"))
    assert (len(suite.prefill.calls), len(other.calls)) == (2, 2)


async def test_two_prompts_of_one_moment_with_one_prefix_go_to_one_prefill_worker(suite: ScriptedSuite) -> None:
    other = await suite.join("prefill-east-2", "prefill", "east", prefills(0))
    all_hold_until_called(suite, other, 2)
    await asyncio.gather(*(suite.complete(prompt=LONG + tail, max_tokens=1) for tail in ("a" * 40, "b" * 40)))
    assert sorted((len(suite.prefill.calls), len(other.calls))) == [0, 2]


def all_hold_until_called(suite: ScriptedSuite, other: ScriptedWorker, num_calls: int) -> None:
    """Let no call end before both prefill workers have had so many: every plan is made beside the other ones."""

    async def called() -> None:
        await until(lambda: len(suite.prefill.calls) + len(other.calls) == num_calls)

    suite.prefill.behave = other.behave = prefills(96, after=called)
    suite.decode.behave = says("ok", computed=4, after=called)


async def test_without_any_prefill_worker_decode_computes_everything(suite: ScriptedSuite) -> None:
    suite.parts.registry.lost(WorkerId("prefill-east"))
    suite.decode.behave = says("ok", computed=100)
    await suite.complete(prompt=LONG, max_tokens=2)
    start = suite.decode.calls[0].request
    assert (start.num_blocks, start.wait_ms) == (0, 0)
    assert suite.metric("plans_total", kind="decode_only") == 1


async def test_a_decode_error_in_mid_stream_is_an_event_without_done(suite: ScriptedSuite) -> None:
    async def behave(call: Call) -> AsyncIterator[pb.Tokens]:
        async for message in says("ab", finish=pb.FINISH_REASON_UNSPECIFIED)(call):
            yield message
        raise BadRequest("the engine did not like it")

    suite.decode.behave = behave
    async with suite.client.post("/v1/completions", json={"prompt": "p", "stream": True}) as response:
        assert response.status == 200
        events = await events_of(response)
    assert "[DONE]" not in events
    assert events[-1]["error"]["message"] == "the engine did not like it"
    assert events[-1]["error"]["code"] == "invalid_request"
    await suite.works()


async def test_another_decode_worker_takes_over_before_and_after_the_first_token(suite: ScriptedSuite) -> None:
    async def dies(call: Call) -> AsyncIterator[pb.Tokens]:
        async for message in says("ab", finish=pb.FINISH_REASON_UNSPECIFIED)(call):
            yield message
        raise WorkerLost("power cut")

    suite.decode.behave = raises(WorkerLost("power cut"))
    spare = await suite.join("decode-west-2", "decode", "west", says("whole"))
    assert (await suite.complete(max_tokens=5))["choices"][0]["text"] == "whole"
    suite.parts.registry.lost(WorkerId("decode-west"))

    suite.parts.registry.assign(WorkerId("decode-west-2"))  # a call that makes it the busier one
    first = await suite.join("decode-west-1", "decode", "west", dies)
    answer = await suite.complete(prompt="start", max_tokens=7, seed=5, min_tokens=3)
    assert answer["choices"][0]["text"] == "abwhole"
    assert len(first.calls) == 1
    taken_over = spare.calls[-1].request
    assert bytes_of(taken_over.token_ids) == b"startab"
    assert (taken_over.sampling.max_tokens, taken_over.sampling.seed, taken_over.sampling.min_tokens) == (5, 5, 1)
    assert (first.calls[0].request.num_generated, taken_over.num_generated) == (0, 2)
    assert answer["usage"]["prompt_tokens"] == 5
    assert answer["usage"]["completion_tokens"] == 7


async def test_a_lost_decode_worker_without_a_spare_is_503_and_used_again_after_a_sign_of_life(
    suite: ScriptedSuite,
) -> None:
    suite.decode.behave = raises(WorkerLost("power cut"))
    async with suite.client.post("/v1/completions", json={"prompt": "p"}) as response:
        assert response.status == 503
        assert (await response.json())["error"]["type"] == "server_error"
    async with suite.client.get("/health") as response:
        assert response.status == 503
        assert "a call to it has failed" in (await response.json())["reasons"][0]
    announce(suite.parts, "decode-west", "decode", "west", suite.decode.address)
    async with suite.client.get("/health") as response:
        assert response.status == 200
    await suite.works()


async def test_an_overloaded_worker_is_429_with_retry_after(suite: ScriptedSuite) -> None:
    suite.decode.behave = raises(Overloaded("the queue is full"))
    async with suite.client.post("/v1/completions", json={"prompt": "p"}) as response:
        assert response.status == 429
        assert response.headers["Retry-After"] == "1"
        assert (await response.json())["error"]["type"] == "rate_limit_error"
    await suite.works()


async def test_the_deadline_ends_a_request_with_504(tmp_path: Path) -> None:
    async with running_suite(tmp_path, request_timeout_s=0.2) as suite:
        suite.decode.behave = hangs

        async def is_answered() -> bool:
            async with suite.client.post("/v1/completions", json={"prompt": "p"}) as response:
                if response.status == 504:
                    assert (await response.json())["error"]["code"] == "deadline_exceeded"
                return response.status == 200

        assert not await is_answered()
        for call in suite.decode.calls:
            await asyncio.wait_for(call.over.wait(), LIMIT_S)
        suite.decode.behave = says("fine")
        await eventually(is_answered)  # in time, unless this process stands still just then


async def test_a_draining_gateway_refuses_and_too_many_requests_are_refused(tmp_path: Path) -> None:
    async with running_suite(tmp_path, max_requests=1) as suite:
        refused = asyncio.Event()
        suite.decode.behave = says("slow", after=refused.wait)
        running = asyncio.create_task(suite.complete())
        await suite.decode.called.wait()
        async with suite.client.post("/v1/completions", json={"prompt": "p"}) as response:
            assert response.status == 429
        refused.set()
        assert (await running)["choices"][0]["text"] == "slow"
        suite.inflight.drain()
        async with suite.client.post("/v1/completions", json={"prompt": "p"}) as response:
            assert response.status == 503
            assert (await response.json())["error"]["code"] == "draining"


async def test_models_version_and_tokenizer_endpoints(suite: ScriptedSuite) -> None:
    async with suite.client.get("/v1/models") as response:
        listing = await response.json()
    (model,) = listing["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == ("tiny", "model", MAX_MODEL_LEN)
    async with suite.client.get("/v1/models/tiny") as response:
        assert (await response.json())["id"] == "tiny"
    async with suite.client.get("/v1/models/other") as response:
        assert response.status == 404
    async with suite.client.get("/version") as response:
        assert (await response.json())["version"]
    async with suite.client.post("/tokenize", json={"prompt": "héy", "return_token_strs": True}) as response:
        tokenized = await response.json()
    assert (tokenized["count"], tokenized["max_model_len"]) == (4, MAX_MODEL_LEN)
    assert bytes_of(tokenized["tokens"]).decode() == "héy"
    assert tokenized["token_strs"][0] == "h"
    async with suite.client.post("/detokenize", json={"tokens": tokenized["tokens"]}) as response:
        assert await response.json() == {"prompt": "héy"}
    chat = {"messages": [{"role": "user", "content": "a"}]}
    async with suite.client.post("/tokenize", json=chat) as response:
        assert bytes_of((await response.json())["tokens"]) == b"User: a\nAssistant:"


async def test_metrics_carry_vllm_names(suite: ScriptedSuite) -> None:
    await suite.complete(max_tokens=11)
    async with suite.client.get("/metrics") as response:
        text = await response.text()
    labels = 'engine="gateway",model_name="tiny"'
    assert f"prfaas:prompt_tokens_total{{{labels}}} 5.0" in text
    assert f"prfaas:generation_tokens_total{{{labels}}} 11.0" in text
    assert f"prfaas:time_to_first_token_seconds_count{{{labels}}} 1.0" in text
    assert f"prfaas:inter_token_latency_seconds_count{{{labels}}} 10.0" in text
    assert f"prfaas:num_requests_running{{{labels}}} 0.0" in text
    assert 'prfaas:request_success_total{finished_reason="length",model_name="tiny"} 1.0' in text


async def test_token_ids_come_back_when_asked_for(suite: ScriptedSuite) -> None:
    suite.decode.behave = says("hello", finish=pb.FINISH_REASON_LENGTH)
    answer = await suite.complete(max_tokens=5, return_token_ids=True)
    assert bytes_of(answer["choices"][0]["token_ids"]) == b"hello"
    body = {"prompt": "x", "max_tokens": 5, "stream": True, "return_token_ids": True}
    async with suite.client.post("/v1/completions", json=body) as response:
        chunks = await events_of(response)
    streamed = [token for chunk in chunks[:-1] for token in chunk["choices"][0]["token_ids"]]
    assert bytes_of(streamed) == b"hello"
