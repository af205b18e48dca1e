"""Bodies: what is accepted, what each complaint says, what decode is told. Statuses are tested over HTTP."""

import json
from typing import Any

import pytest
from pydantic import BaseModel

from services.gateway.api.bodies.chat import ChatBody, Message
from services.gateway.api.bodies.completion import CompletionBody
from services.gateway.api.bodies.parsing import UnknownFields, parse
from services.gateway.api.bodies.sampling import Sampling
from shared.errors import BadRequest

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


def completion(**fields: Any) -> CompletionBody:
    return parse(CompletionBody, json.dumps({"prompt": "p", **fields}).encode())


@pytest.mark.parametrize("prompt", ["text", ["a", "b"], [1, 2], [[1], [2, 3]], []])
def test_forms_of_prompts(prompt: Any) -> None:
    assert completion(prompt=prompt).prompt == prompt


@pytest.mark.parametrize(
    ("schema", "body", "param", "message"),
    [
        (CompletionBody, {}, "prompt", "prompt is required"),
        (CompletionBody, {"prompt": 5}, "prompt", "prompt: must be a string, a list of strings"),
        (CompletionBody, {"prompt": [True]}, "prompt[0]", "should be a valid integer"),
        (CompletionBody, {"prompt": [[1], "a"]}, "prompt[1]", "should be a valid array"),
        (CompletionBody, {"prompt": ["a"] * 129}, "prompt", "at most 128 items"),
        (CompletionBody, {"prompt": "p", "top_p": 1.5}, "top_p", "less than or equal to 1"),
        (CompletionBody, {"prompt": "p", "stop": ["a", 5]}, "stop[1]", "should be a valid string"),
        (
            CompletionBody,
            {"prompt": "p", "stream_options": {"include_usage": 1}},
            "stream_options.include_usage",
            "bool",
        ),
        (
            ChatBody,
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
            "required",
        ),
        (
            ChatBody,
            {"messages": [{"role": "user", "content": [{"type": "x"}]}]},
            "messages[0].content[0].type",
            "'text'",
        ),
    ],
)
def test_complaints_name_the_field(schema: type[BaseModel], body: Any, param: str, message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(schema, json.dumps(body).encode())
    assert caught.value.param == param
    assert message in str(caught.value)


def test_one_bad_item_of_a_long_list_is_one_complaint() -> None:
    with pytest.raises(BadRequest) as caught:
        completion(prompt=[*range(100_000), "x", *(["y"] * 1000)])
    assert caught.value.param == "prompt[100000]"


NEUTRAL: dict[str, Any] = {
    "best_of": 1,
    "use_beam_search": False,
}
MEANINGFUL: dict[str, Any] = {
    "best_of": 2,
    "use_beam_search": True,
    "prompt_logprobs": 0,
    "allowed_token_ids": [1],
    "truncate_prompt_tokens": 5,
    "guided_whitespace_pattern": " ?",
}


@pytest.mark.parametrize(("schema", "base"), [(CompletionBody, {"prompt": "p"}), (ChatBody, CHAT)])
def test_unimplemented_fields_pass_only_when_they_change_nothing(schema: type[Sampling], base: dict[str, Any]) -> None:
    parse(schema, json.dumps({**base, **NEUTRAL}).encode()).check_supported()
    parse(schema, json.dumps({**base, **dict.fromkeys(MEANINGFUL)}).encode()).check_supported()
    for name, value in MEANINGFUL.items():
        body = parse(schema, json.dumps({**base, name: value}).encode())
        with pytest.raises(BadRequest, match="not supported") as caught:
            body.check_supported()
        assert caught.value.param == name


@pytest.mark.parametrize(
    ("schema", "body", "param"),
    [
        (CompletionBody, {"prompt": "p", "echo": True, "logprobs": 0}, "echo"),
        (CompletionBody, {"prompt": "p", "suffix": "s"}, "suffix"),
        (ChatBody, {**CHAT, "top_logprobs": 2}, "top_logprobs"),
        (ChatBody, {**CHAT, "logprobs": False, "top_logprobs": 2}, "top_logprobs"),
        (ChatBody, {**CHAT, "echo": True}, "echo"),
        (ChatBody, {**CHAT, "tools": [{}]}, "tools[0].type"),
        (ChatBody, {**CHAT, "tool_choice": {"type": "function"}}, "tool_choice.function"),
        (ChatBody, {**CHAT, "tool_choice": "any"}, "tool_choice"),
        (ChatBody, {**CHAT, "functions": [{"name": "f"}]}, "functions"),
        (ChatBody, {**CHAT, "function_call": {"name": "f"}}, "function_call"),
        (ChatBody, {**CHAT, "chat_template_kwargs": {"tools": []}}, "chat_template_kwargs"),
        (ChatBody, {**CHAT, "continue_final_message": True}, "continue_final_message"),
        (ChatBody, {**CHAT, "chat_template": "{{x}}"}, "chat_template"),
    ],
)
def test_what_only_one_of_the_two_takes(schema: type[Sampling], body: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(schema, json.dumps(body).encode()).check_supported()
    assert caught.value.param == param


def test_chat_accepts_explicitly_neutral_fields() -> None:
    neutral = {
        "echo": False,
        "logprobs": False,
        "top_logprobs": 0,
        "tools": [],
        "tool_choice": "none",
        "chat_template_kwargs": {},
    }
    parse(ChatBody, json.dumps({**CHAT, **neutral}).encode()).check_supported()


def test_sampling_defaults_and_off_values() -> None:
    params = completion(top_k=-1, temperature=None).sampling_params(16, 100)
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens) == (1.0, 1.0, 0, 16)
    assert completion(temperature=0).sampling_params(16, 100).greedy
    assert completion(top_k=5000).sampling_params(16, 100).top_k == 100
    assert completion(seed=-1).sampling_params(16, 100).seed == 2**64 - 1
    assert completion(seed=0).sampling_params(16, 100).seed == 0


def test_what_decode_is_told_of_penalties_biases_and_logprobs() -> None:
    off = completion().sampling_params(16, 100)
    assert (off.min_p, off.repetition_penalty, off.logit_bias, off.num_logprobs) == (0.0, 1.0, (), None)
    params = completion(
        min_p=0.1,
        presence_penalty=-2,
        frequency_penalty=0.5,
        repetition_penalty=1.1,
        logit_bias={"99": -100, "7": 1.5, "07": 2},
        logprobs=0,
    ).sampling_params(16, 100)
    assert (params.min_p, params.presence_penalty, params.frequency_penalty) == (0.1, -2.0, 0.5)
    assert (params.repetition_penalty, params.num_logprobs) == (1.1, 0)
    assert params.logit_bias == ((7, 2.0), (99, -100.0))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({}, None), ({"logprobs": False}, None), ({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 20}, 20)],
)
def test_logprobs_of_chats(fields: dict[str, Any], expected: int | None) -> None:
    assert parse(ChatBody, json.dumps({**CHAT, **fields}).encode()).num_logprobs == expected


@pytest.mark.parametrize("key", ["-1", "1.0", "a", "", " 5", "1_0", "\u0661", "9" * 11, "100"])
def test_keys_of_logit_bias_are_token_ids(key: str) -> None:
    with pytest.raises(BadRequest) as caught:
        completion(logit_bias={key: 1}).sampling_params(16, 100)
    assert caught.value.param == "logit_bias"


@pytest.mark.parametrize(("stop", "expected"), [(None, ()), ("a", ("a",)), (["a", "b"], ("a", "b")), ([], ())])
def test_stop_strings(stop: Any, expected: tuple[str, ...]) -> None:
    assert completion(stop=stop).stop_strings == expected


def test_messages_for_templates() -> None:
    message = Message.model_validate({"role": "assistant", "content": None, "name": "bob", "extra": 1})
    assert message.for_template() == {"role": "assistant", "content": "", "name": "bob"}


def test_unknown_fields_are_noted_within_bounds() -> None:
    fields = UnknownFields()
    fields.note(completion(**{f"field{i}": i for i in range(3000)}))
    assert len(fields._seen) == 1000
