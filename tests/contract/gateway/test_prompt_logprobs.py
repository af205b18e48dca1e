"""Log-probabilities of prompts and the best of several choices over HTTP: OpenAI's shapes and vLLM's."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shared.errors import WorkerLost
from shared.proto import prfaas_pb2 as pb
from tests.support.gateway import (
    EOS,
    Behaviour,
    Call,
    ScriptedSuite,
    events_of,
    ids_of,
    running_suite,
    says,
)

LONG = "x" * 100  # six blocks, above the offload threshold


@pytest.fixture
async def suite(tmp_path: Path) -> AsyncIterator[ScriptedSuite]:
    async with running_suite(tmp_path) as suite:
        yield suite


def scores(ids: list[int], then: int = 0, finish: Any = pb.FINISH_REASON_LENGTH, *, dies_after: int = 0) -> Behaviour:
    """A decode worker that tells of token i of the prompt that it is -i, in two messages, and then says `ids`.

    With `dies_after` it is lost when it has told of so many tokens.
    """

    async def behave(call: Call) -> AsyncIterator[pb.Tokens]:
        request = call.request
        told: list[pb.TokenLogprobs] = []
        if request.HasField("scoring"):
            num_prompt = len(request.token_ids) - request.num_generated
            top = ids_of("zyxwv")[: request.scoring.num_top]
            told = [
                pb.TokenLogprobs(logprob=-i, top_ids=top, top_logprobs=[-0.5 - j for j in range(len(top))], rank=i + 1)
                for i in range(request.scoring.first, num_prompt)
            ]
        if dies_after:
            yield pb.Tokens(prompt_logprobs=told[:dies_after])
            raise WorkerLost("power cut")
        yield pb.Tokens(prompt_logprobs=told[:2])
        yield pb.Tokens(prompt_logprobs=told[2:])
        wanted = ids[: request.sampling.max_tokens]
        asked = request.sampling.HasField("num_logprobs")
        for place, token_id in enumerate(wanted):
            own = [pb.TokenLogprobs(logprob=-10 - place, top_ids=[token_id], top_logprobs=[-10 - place])]
            reason = finish if place == len(wanted) - 1 else pb.FINISH_REASON_UNSPECIFIED
            yield pb.Tokens(ids=[token_id], finish_reason=reason, logprobs=own if asked else [])
        if not wanted:
            yield pb.Tokens(finish_reason=pb.FINISH_REASON_LENGTH, computed_prompt_tokens=len(request.token_ids))

    return behave


async def chat(suite: ScriptedSuite, **body: Any) -> Any:
    full = {"messages": [{"role": "user", "content": "hi"}], **body}
    async with suite.client.post("/v1/chat/completions", json=full) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def test_echo_with_logprobs_tells_of_the_prompt_and_the_answer_in_one(suite: ScriptedSuite) -> None:
    suite.decode.behave = scores(ids_of("ok"))
    for prompt in ("hé!", ids_of("hé!")):
        answer = await suite.complete(prompt=prompt, echo=True, logprobs=1, max_tokens=2)
        (choice,) = answer["choices"]
        assert choice["text"] == "hé!ok"
        assert choice["logprobs"] == {
            "tokens": ["h", "bytes:\\xc3", "bytes:\\xa9", "!", "o", "k"],
            "token_logprobs": [None, -1.0, -2.0, -3.0, -10.0, -11.0],
            "top_logprobs": [
                None,
                {"z": -0.5, "bytes:\\xc3": -1.0},
                {"z": -0.5, "bytes:\\xa9": -2.0},
                {"z": -0.5, "!": -3.0},
                {"o": -10.0},
                {"k": -11.0},
            ],
            "text_offset": [0, 1, 1, 2, 3, 4],
        }
        assert "prompt_logprobs" not in choice
        assert answer["usage"]["total_tokens"] == 6


async def test_every_token_has_its_entry_also_one_that_ends_the_answer(suite: ScriptedSuite) -> None:
    """Harnesses count entries from both ends."""
    suite.decode.behave = scores([EOS], finish=pb.FINISH_REASON_STOP)
    answer = await suite.complete(prompt="abc", echo=True, logprobs=0, max_tokens=1)
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("abc", "stop")
    assert choice["logprobs"]["tokens"] == ["a", "b", "c", "<eos>"]
    assert choice["logprobs"]["token_logprobs"] == [None, -1.0, -2.0, -10.0]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3]
    suite.decode.behave = scores(ids_of("a. b"))
    answer = await suite.complete(prompt="abc", echo=True, logprobs=0, max_tokens=4, stop=".")
    assert answer["choices"][0]["text"] == "abca"
    assert answer["choices"][0]["logprobs"]["tokens"] == list("abca")  # what a stop string hides is not told


@pytest.mark.parametrize("echo", [True, False])
async def test_no_token_is_asked_for(suite: ScriptedSuite, echo: bool) -> None:
    suite.decode.behave = scores(ids_of("never"))
    answer = await suite.complete(prompt="abc", echo=echo, logprobs=0 if echo else None, max_tokens=0)
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("abc" if echo else "", "length")
    assert (choice["logprobs"] or {"tokens": None})["tokens"] == (list("abc") if echo else None)
    assert suite.decode.calls[0].request.sampling.max_tokens == 0
    assert answer["usage"]["completion_tokens"] == 0
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


async def test_streamed_echo_is_the_whole_one(suite: ScriptedSuite) -> None:
    suite.decode.behave = scores(ids_of("ok"))
    body = {"prompt": ["hé!", "ab"], "echo": True, "logprobs": 2, "max_tokens": 2, "n": 2}
    whole = (await suite.complete(**body))["choices"]
    async with suite.client.post("/v1/completions", json={**body, "stream": True}) as response:
        events = await events_of(response)
    texts = [""] * 4
    told: list[dict[str, list[Any]]] = [{name: [] for name in whole[0]["logprobs"]} for _ in range(4)]
    for chunk in (chunk for event in events[:-1] for chunk in event["choices"]):
        texts[chunk["index"]] += chunk["text"]
        for name, column in (chunk["logprobs"] or {}).items():
            told[chunk["index"]][name] += column
    assert texts == [choice["text"] for choice in whole]
    assert told == [choice["logprobs"] for choice in whole]


async def test_prompt_logprobs_as_vllm_has_them(suite: ScriptedSuite) -> None:
    suite.decode.behave = scores(ids_of("ok"))
    z, y = (str(i) for i in ids_of("zy"))
    own = str(ids_of("b")[0])
    expected = [
        None,
        {
            own: {"logprob": -1.0, "rank": 2, "decoded_token": "b"},
            z: {"logprob": -0.5, "rank": 1, "decoded_token": "z"},
            y: {"logprob": -1.5, "rank": 2, "decoded_token": "y"},
        },
    ]
    answer = await suite.complete(prompt="ab", prompt_logprobs=2, max_tokens=2)
    assert answer["choices"][0]["prompt_logprobs"] == expected
    assert (answer["choices"][0]["text"], answer["choices"][0]["logprobs"]) == ("ok", None)
    bare = await suite.complete(prompt="ab", prompt_logprobs=0, logprobs=3, max_tokens=2, n=2)
    for choice in bare["choices"]:
        assert choice["prompt_logprobs"] == [None, {own: expected[1][own]}]  # type: ignore[index]
        assert choice["logprobs"]["tokens"] == ["o", "k"]
    assert (await suite.complete(prompt="a", prompt_logprobs=1))["choices"][0]["prompt_logprobs"] == [None]
    assert not suite.decode.calls[-1].request.HasField("scoring")


async def test_prompt_logprobs_of_a_chat_stand_beside_its_choices(suite: ScriptedSuite) -> None:
    suite.decode.behave = scores(ids_of("ok"))
    answer = await chat(suite, prompt_logprobs=0, max_tokens=2, n=2)
    told = answer["prompt_logprobs"]
    assert len(told) == answer["usage"]["prompt_tokens"]
    assert told[0] is None
    assert [entry["logprob"] for entries in told[1:] for entry in entries.values()] == [-i for i in range(1, len(told))]
    assert "prompt_logprobs" not in await chat(suite)


async def test_one_choice_tells_of_the_prompt_and_the_others_wait_for_it(suite: ScriptedSuite) -> None:
    suite.decode.behave = scores(ids_of("ok"))
    answer = await suite.complete(prompt="abcd", prompt_logprobs=0, echo=True, logprobs=0, n=3, max_tokens=2)
    assert [call.request.HasField("scoring") for call in suite.decode.calls] == [True, False, False]
    assert len({str(choice["prompt_logprobs"]) for choice in answer["choices"]}) == 1
    assert [choice["logprobs"]["token_logprobs"][:4] for choice in answer["choices"]] == [[None, -1, -2, -3]] * 3
    assert answer["usage"]["prompt_tokens"] == 4


async def test_decode_alone_computes_what_is_told(suite: ScriptedSuite) -> None:
    """A prefill worker's KV would tell nothing, and neither would a cache's."""
    suite.decode.behave = scores(ids_of("ok"))
    await suite.complete(prompt=LONG, prompt_logprobs=0)
    assert suite.prefill.calls == []
    request = suite.decode.calls[0].request
    assert (request.num_blocks, list(request.sources), request.wait_ms) == (0, [], 0)
    await suite.complete(prompt=LONG)
    assert len(suite.prefill.calls) == 1


@pytest.mark.parametrize("num_told", [1, 50, 99])
async def test_a_second_worker_goes_on_behind_what_was_told(suite: ScriptedSuite, num_told: int) -> None:
    suite.decode.behave = scores([], dies_after=num_told)
    other = await suite.join("decode-west-9", "decode", "west", scores(ids_of("ok")))
    answer = await suite.complete(prompt=LONG, echo=True, logprobs=0, max_tokens=2)
    told = answer["choices"][0]["logprobs"]["token_logprobs"]
    assert told == [None, *(-i for i in range(1, 100)), -10, -11]
    request = other.calls[0].request
    if num_told < 99:
        assert request.scoring.first == 1 + num_told
    else:  # nothing is left to tell: an ordinary request
        assert not request.HasField("scoring")


async def test_what_is_lost_behind_the_last_thing_told_is_whole(suite: ScriptedSuite) -> None:
    suite.decode.behave = scores([], dies_after=99)
    answer = await suite.complete(prompt=LONG, prompt_logprobs=0, max_tokens=0)
    assert len(answer["choices"][0]["prompt_logprobs"]) == 100
    assert answer["choices"][0]["finish_reason"] == "length"


def guesses(answers: list[tuple[str, float]]) -> Behaviour:
    """A decode worker whose n-th call says the n-th text, each token as likely as said."""
    calls = iter(answers)

    async def behave(call: Call) -> AsyncIterator[pb.Tokens]:
        text, logprob = next(calls)
        ids = ids_of(text)
        assert call.request.sampling.HasField("num_logprobs")
        yield pb.Tokens(
            ids=ids, finish_reason=pb.FINISH_REASON_STOP, logprobs=[pb.TokenLogprobs(logprob=logprob)] * len(ids)
        )

    return behave


async def test_the_best_are_those_whose_tokens_are_likeliest_on_average(suite: ScriptedSuite) -> None:
    guessed = [("bad", -3.0), ("a good one", -0.5), ("fair", -1.0), ("poor", -1.5)]
    suite.decode.behave = guesses(guessed)
    answer = await suite.complete(best_of=4, n=3, max_tokens=20)
    assert [choice["text"] for choice in answer["choices"]] == ["a good one", "fair", "poor"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert all(choice["logprobs"] is None for choice in answer["choices"])
    assert answer["usage"]["completion_tokens"] == sum(len(text) for text, _ in guessed)
    assert answer["usage"]["prompt_tokens"] == 5


async def test_the_best_of_each_prompt_with_what_is_known_of_it(suite: ScriptedSuite) -> None:
    suite.decode.behave = guesses([("a", -2.0), ("b", -1.0), ("c", -2.0), ("d", -3.0)])
    answer = await suite.complete(prompt=["p", "q"], best_of=2, logprobs=0, max_tokens=1)
    texts = [choice["text"] for choice in answer["choices"]]
    assert len(texts) == 2
    for choice in answer["choices"]:
        assert choice["logprobs"]["tokens"] == [choice["text"]]
        assert choice["logprobs"]["token_logprobs"][0] in (-1.0, -2.0)


async def test_as_many_as_are_shown_stay_in_their_order(suite: ScriptedSuite) -> None:
    suite.decode.behave = says("hello")
    answer = await suite.complete(best_of=2, n=2, max_tokens=5)
    assert [choice["text"] for choice in answer["choices"]] == ["hello", "hello"]
    assert not suite.decode.calls[0].request.sampling.HasField("num_logprobs")
