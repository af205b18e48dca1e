"""Several choices, log-probabilities and echo over HTTP: OpenAI's shapes, whole and streamed."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shared.errors import WorkerLost
from shared.proto import prfaas_pb2 as pb
from shared.sampling.params import choice_seed
from tests.support.gateway import (
    EOS,
    Behaviour,
    Call,
    ScriptedSuite,
    bytes_of,
    events_of,
    ids_of,
    running_suite,
    says,
)

LONG = "x" * 40  # two prefix blocks of 16, below the offload threshold


@pytest.fixture
async def suite(tmp_path: Path) -> AsyncIterator[ScriptedSuite]:
    async with running_suite(tmp_path) as suite:
        yield suite


def tells(ids: list[int], finish: Any = pb.FINISH_REASON_LENGTH) -> Behaviour:
    """A decode worker that says `ids` with log-probabilities -1, -2, … and as many alternatives as asked for."""

    async def behave(call: Call) -> AsyncIterator[pb.Tokens]:
        number = call.request.sampling.num_logprobs
        for place, token_id in enumerate(ids):
            top = [token_id, *ids_of("zyxwv")][:number]
            told = pb.TokenLogprobs(
                logprob=-1 - place, top_ids=top, top_logprobs=[-1 - place - i for i in range(len(top))]
            )
            last = place == len(ids) - 1
            yield pb.Tokens(
                ids=[token_id],
                finish_reason=finish if last else pb.FINISH_REASON_UNSPECIFIED,
                logprobs=[told] if call.request.sampling.HasField("num_logprobs") else [],
            )

    return behave


async def chat(suite: ScriptedSuite, **body: Any) -> Any:
    full = {"messages": [{"role": "user", "content": "hi"}], **body}
    async with suite.client.post("/v1/chat/completions", json=full) as response:
        assert response.status == 200, await response.text()
        return await events_of(response) if body.get("stream") else await response.json()


async def stream(suite: ScriptedSuite, **body: Any) -> list[Any]:
    async with suite.client.post("/v1/completions", json={"prompt": "hello", "stream": True, **body}) as response:
        assert response.status == 200, await response.text()
        return await events_of(response)


async def test_sampling_parameters_reach_decode_to_the_bit(suite: ScriptedSuite) -> None:
    wanted = {
        "temperature": 0.1,
        "min_p": 0.05,
        "presence_penalty": 0.1,
        "frequency_penalty": -0.3,
        "repetition_penalty": 1.1,
    }
    await suite.complete(logit_bias={"5": -100, "9": 0.1}, **wanted)
    sampling = suite.decode.calls[0].request.sampling
    assert {name: getattr(sampling, name) for name in wanted} == wanted
    assert dict(sampling.logit_bias) == {5: -100.0, 9: 0.1}
    assert not sampling.HasField("num_logprobs")


async def test_priority_reaches_both_workers(suite: ScriptedSuite) -> None:
    prompt = "x" * 100  # above the offload threshold: prefill is asked too
    await suite.complete(prompt=prompt, priority=-3)
    await chat(suite, messages=[{"role": "user", "content": prompt}], priority=7)
    await suite.complete(prompt="z" * 100)
    for worker in (suite.decode, suite.prefill):
        assert [call.request.priority for call in worker.calls] == [-3, 7, 0]


async def test_fidelity_reaches_both_workers_and_lossless_is_the_default(suite: ScriptedSuite) -> None:
    prompt = "x" * 100  # above the offload threshold: its blocks cross
    await suite.complete(prompt=prompt, kv_fidelity="int4")
    await chat(suite, messages=[{"role": "user", "content": prompt}], kv_fidelity="int8")
    await suite.complete(prompt="z" * 100)
    await suite.complete(prompt="y" * 100, kv_fidelity="lossless")
    for worker in (suite.decode, suite.prefill):
        fidelities = [call.request.fidelity for call in worker.calls]
        assert fidelities == [pb.FIDELITY_INT4, pb.FIDELITY_INT8, pb.FIDELITY_LOSSLESS, pb.FIDELITY_LOSSLESS]
    assert [call.request.codec for call in suite.prefill.calls] == [
        pb.CODEC_INT4,
        pb.CODEC_INT8,
        pb.CODEC_ZSTD,
        pb.CODEC_ZSTD,
    ]
    assert {call.request.codec for call in suite.decode.calls} == {pb.CODEC_RAW}


@pytest.mark.parametrize("fidelity", ["int2", "INT8", 8, True, ""])
async def test_an_unknown_fidelity_is_refused(suite: ScriptedSuite, fidelity: Any) -> None:
    body = {"prompt": "hello", "kv_fidelity": fidelity}
    async with suite.client.post("/v1/completions", json=body) as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == "kv_fidelity"


@pytest.mark.parametrize("priority", ["high", 1.5, True, 2**31, -(2**31) - 1])
async def test_a_priority_that_is_no_small_integer_is_refused(suite: ScriptedSuite, priority: Any) -> None:
    for path, body in (
        ("/v1/completions", {"prompt": "hello"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
    ):
        async with suite.client.post(path, json={**body, "priority": priority}) as response:
            assert response.status == 400
            assert (await response.json())["error"]["param"] == "priority"
    assert not suite.decode.calls


async def test_a_continuation_keeps_its_priority(suite: ScriptedSuite) -> None:
    async def dies(call: Call) -> AsyncIterator[pb.Tokens]:
        async for message in tells(ids_of("ab"), finish=pb.FINISH_REASON_UNSPECIFIED)(call):
            yield message
        raise WorkerLost("power cut")

    suite.decode.behave = dies
    second = await suite.join("decode-west-9", "decode", "west", tells(ids_of("cd")))
    await suite.complete(max_tokens=4, priority=2)
    assert [call.request.priority for call in (*suite.decode.calls, *second.calls)] == [2, 2]


async def test_choices_have_seeds_of_their_own_and_one_prompt(suite: ScriptedSuite) -> None:
    suite.decode.behave = says("hello", computed=5)
    answer = await suite.complete(prompt=["hello", "again"], n=3, seed=7, max_tokens=5)
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert answer["usage"]["prompt_tokens"] == 10
    assert answer["usage"]["completion_tokens"] == 30
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    asked = {(bytes_of(call.request.token_ids), call.request.sampling.seed) for call in suite.decode.calls}
    seeds = {7, choice_seed(7, 1), choice_seed(7, 2)}
    assert asked == {(prompt, seed) for prompt in (b"hello", b"again") for seed in seeds}
    assert suite.metric("prompt_tokens_total", engine="gateway") == 10
    assert suite.metric("prompt_tokens_by_source_total", source="decode") == 10
    assert suite.metric("request_success_total", finished_reason="length") == 6


async def test_other_choices_start_when_the_first_has_made_the_prefix(suite: ScriptedSuite) -> None:
    seen_at_first_token: list[int] = []

    async def behave(call: Call) -> AsyncIterator[pb.Tokens]:
        if not seen_at_first_token:
            seen_at_first_token.append(len(suite.decode.calls))
        blocks = call.request.num_blocks  # the others are told of what the first has left in the pool
        async for message in says("ok", computed=40 if call is suite.decode.calls[0] else 40 - 16 * blocks)(call):
            yield message

    suite.decode.behave = behave
    answer = await suite.complete(prompt=LONG, n=3, max_tokens=2)
    assert [choice["text"] for choice in answer["choices"]] == ["ok"] * 3
    assert seen_at_first_token == [1]
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert sum(suite.metric("prompt_tokens_by_source_total", source=s) for s in ("cache", "prefill", "decode")) == 40


async def test_a_lost_first_choice_fails_them_all(suite: ScriptedSuite) -> None:
    async def dies(_call: Call) -> AsyncIterator[pb.Tokens]:
        raise WorkerLost("power cut")
        yield  # type: ignore[unreachable]  # makes this a generator

    suite.decode.behave = dies
    async with suite.client.post("/v1/completions", json={"prompt": LONG, "n": 3}) as response:
        assert response.status == 503
    assert len(suite.decode.calls) == 1


async def test_streamed_chat_choices_have_each_a_role(suite: ScriptedSuite) -> None:
    events = await chat(suite, n=2, stream=True, max_tokens=5)
    roles = [choice["index"] for event in events[:2] for choice in event["choices"] if "role" in choice["delta"]]
    assert roles == [0, 1]
    texts = ["", ""]
    for event in events[2:-1]:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == ["hello", "hello"]


async def test_completion_logprobs(suite: ScriptedSuite) -> None:
    suite.decode.behave = tells([*ids_of("aé")])
    answer = await suite.complete(logprobs=2)
    assert answer["choices"][0]["logprobs"] == {
        "tokens": ["a", "bytes:\\xc3", "bytes:\\xa9"],
        "token_logprobs": [-1.0, -2.0, -3.0],
        "top_logprobs": [
            {"a": -1.0, "z": -2.0},
            {"bytes:\\xc3": -2.0, "z": -3.0},
            {"bytes:\\xa9": -3.0, "z": -4.0},
        ],
        "text_offset": [0, 1, 1],
    }
    zero = (await suite.complete(logprobs=0))["choices"][0]["logprobs"]
    assert zero["top_logprobs"][0] == {"a": -1.0}  # the token itself is always there
    assert (await suite.complete())["choices"][0]["logprobs"] is None


async def test_chat_logprobs(suite: ScriptedSuite) -> None:
    suite.decode.behave = tells([*ids_of("é"), EOS], finish=pb.FINISH_REASON_STOP)
    answer = await chat(suite, logprobs=True, top_logprobs=1)
    own, second = ({"token": f"\\x{b:02x}", "logprob": p, "bytes": [b]} for b, p in ((0xC3, -1.0), (0xA9, -2.0)))
    content = [{**own, "top_logprobs": [own]}, {**second, "top_logprobs": [second]}]
    assert answer["choices"][0]["logprobs"] == {"content": content}
    assert answer["choices"][0]["message"]["content"] == "é"
    bare = (await chat(suite, logprobs=True))["choices"][0]["logprobs"]["content"]
    assert [entry["top_logprobs"] for entry in bare] == [[], []]
    assert (await chat(suite))["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("include", [False, True])
async def test_streamed_logprobs_are_those_of_the_whole_answer(suite: ScriptedSuite, include: bool) -> None:
    suite.decode.behave = tells(ids_of("one 猫 STAND STOP two"))
    body = {"logprobs": 1, "stop": "STOP", "include_stop_str_in_output": include, "max_tokens": 30}
    whole = (await suite.complete(**body))["choices"][0]
    assert whole["text"] == "one 猫 STAND " + ("STOP" if include else "")
    told = whole["logprobs"]
    spelt = b"".join(
        bytes.fromhex(name.removeprefix("bytes:\\x")) if name.startswith("bytes:") else name.encode()
        for name in told["tokens"]
    )
    assert spelt.decode() == whole["text"]
    chunks = [event["choices"][0] for event in (await stream(suite, **body))[:-1]]
    assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
    for name, column in told.items():
        assert [item for chunk in chunks for item in (chunk["logprobs"] or {name: []})[name]] == column
    assert all((chunk["logprobs"] is not None) == bool(chunk["text"]) for chunk in chunks)


async def test_streamed_chat_logprobs(suite: ScriptedSuite) -> None:
    suite.decode.behave = tells(ids_of("hé"))
    events = await chat(suite, logprobs=True, stream=True)
    told = [event["choices"][0]["logprobs"] for event in events[:-1]]
    names = [entry["token"] for logprobs in told if logprobs for entry in logprobs["content"]]
    assert names == ["h", "\\xc3", "\\xa9"]


async def test_logprobs_go_on_after_a_worker_is_lost(suite: ScriptedSuite) -> None:
    async def dies(call: Call) -> AsyncIterator[pb.Tokens]:
        async for message in tells(ids_of("ab"), finish=pb.FINISH_REASON_UNSPECIFIED)(call):
            yield message
        raise WorkerLost("power cut")

    suite.decode.behave = dies
    await suite.join("decode-west-9", "decode", "west", tells(ids_of("cd")))
    answer = await suite.complete(logprobs=0, max_tokens=4)
    told = answer["choices"][0]["logprobs"]
    assert (answer["choices"][0]["text"], told["tokens"]) == ("abcd", list("abcd"))
    assert (told["token_logprobs"], told["text_offset"]) == ([-1.0, -2.0, -1.0, -2.0], [0, 1, 2, 3])


async def test_echo_begins_the_answer_with_the_prompt(suite: ScriptedSuite) -> None:
    prompts: list[Any] = ["hé ", ids_of("abc")]
    for prompt, text in zip(prompts, ("hé ", "abc"), strict=True):
        answer = await suite.complete(prompt=prompt, echo=True, max_tokens=5, n=2)
        assert [choice["text"] for choice in answer["choices"]] == [text + "hello"] * 2
    chunks = (await stream(suite, prompt=["a ", "b "], echo=True, max_tokens=5))[:-1]
    texts = ["", ""]
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == ["a hello", "b hello"]
