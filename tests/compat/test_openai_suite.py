"""OpenAI's synchronous client before a whole suite of real processes with a tiny model."""

import threading
from concurrent.futures import ThreadPoolExecutor

import openai as package
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.support.suite import Suite

pytestmark = pytest.mark.suite

HI: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Why is the sky blue?"}]
LONG = "The quick brown fox jumps over the lazy dog. " * 40


def text_of(openai: OpenAI, prompt: str, seed: int | None = None, temperature: float = 0) -> str:
    answer = openai.completions.create(
        model="model", prompt=prompt, max_tokens=12, temperature=temperature, seed=seed, extra_body={"ignore_eos": True}
    )
    return answer.choices[0].text


def test_the_model_is_the_one_that_is_served(openai: OpenAI) -> None:
    (model,) = openai.models.list().data
    assert openai.models.retrieve(model.id).id == model.id == "model"


def test_the_likeliest_tokens_are_the_same_each_time(openai: OpenAI) -> None:
    assert text_of(openai, "hello") == text_of(openai, "hello")


def test_a_seed_fixes_an_answer_and_another_changes_it(openai: OpenAI) -> None:
    texts = [text_of(openai, "hello", seed, 1.0) for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_what_was_computed_once_is_cached(openai: OpenAI) -> None:
    def cached() -> int:
        usage = openai.completions.create(model="model", prompt=LONG, max_tokens=2, temperature=0).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        return usage.prompt_tokens_details.cached_tokens or 0

    first, second = cached(), cached()
    assert first == 0
    assert second > 1000


def test_a_stream_has_the_same_text_as_the_whole(openai: OpenAI) -> None:
    fields = {"ignore_eos": True}
    whole = openai.chat.completions.create(model="model", messages=HI, max_tokens=12, temperature=0, extra_body=fields)
    stream = openai.chat.completions.create(
        model="model", messages=HI, max_tokens=12, temperature=0, stream=True, extra_body=fields
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole.choices[0].message.content


def test_choices_of_one_prompt_differ(openai: OpenAI) -> None:
    answer = openai.completions.create(
        model="model", prompt="hello", n=4, max_tokens=12, temperature=2, extra_body={"ignore_eos": True}
    )
    assert len({choice.text for choice in answer.choices}) > 1
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4 * 12


def test_log_probabilities_are_those_of_the_likeliest_token(openai: OpenAI) -> None:
    answer = openai.chat.completions.create(
        model="model", messages=HI, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.content
    for token in told.content:
        assert token.logprob == pytest.approx(max(other.logprob for other in token.top_logprobs))


def test_a_bias_forbids_a_token(openai: OpenAI) -> None:
    def first(**fields: object) -> int:
        answer = openai.completions.create(
            model="model",
            prompt="hello",
            max_tokens=1,
            temperature=0,
            extra_body={"return_token_ids": True, "ignore_eos": True, **fields},
        )
        token: int = (answer.choices[0].model_extra or {})["token_ids"][0]
        return token

    usual = first()
    assert first(logit_bias={str(usual): -100}) != usual


def test_a_reader_that_stops_reading_frees_its_place(openai: OpenAI) -> None:
    with openai.chat.completions.create(
        model="model", messages=HI, max_tokens=500, stream=True, extra_body={"ignore_eos": True}
    ) as stream:
        next(iter(stream))
    assert text_of(openai, "hello")


def test_threads_share_a_client(openai: OpenAI) -> None:
    expected = text_of(openai, "hello")
    together = threading.Barrier(8)

    def ask(_number: int) -> str:
        together.wait(30)
        return text_of(openai, "hello")

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(8))) == {expected}


async def test_nothing_is_held_when_all_have_been_answered(real: Suite, openai: OpenAI) -> None:
    await real.assert_idle()


def test_a_wrong_request_is_refused_before_any_worker_hears_of_it(openai: OpenAI) -> None:
    with pytest.raises(package.BadRequestError) as caught:
        openai.chat.completions.create(model="model", messages=HI, temperature=5)
    assert caught.value.param == "temperature"


def test_embeddings_are_refused(openai: OpenAI) -> None:
    with pytest.raises(package.NotFoundError, match="this server has no embeddings"):
        openai.embeddings.create(model="model", input="hello")
