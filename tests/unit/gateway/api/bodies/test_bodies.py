"""Bodies: what is accepted, what each complaint says, what decode is told. Statuses are tested over HTTP."""

import json
from contextlib import suppress
from typing import Any

import pytest
from openai.types import completion_create_params as openai_completions
from openai.types.chat import completion_create_params as openai_chats
from pydantic import BaseModel

from services.gateway.api.bodies.chat import ChatBody, Message
from services.gateway.api.bodies.completion import CompletionBody
from services.gateway.api.bodies.known import HARMLESS, REFUSED, REFUSED_INSIDE, is_known
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
}
MEANINGFUL: dict[str, Any] = {
    "allowed_token_ids": [1],
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
        (CompletionBody, {"prompt": "p", "best_of": 2, "n": 3}, "best_of"),
        (CompletionBody, {"prompt": "p", "best_of": 3, "n": 2, "stream": True}, "best_of"),
        (CompletionBody, {"prompt": "p", "prompt_logprobs": 0, "stream": True}, "prompt_logprobs"),
        (ChatBody, {**CHAT, "prompt_logprobs": 0, "stream": True}, "prompt_logprobs"),
        (ChatBody, {**CHAT, "best_of": 2}, "best_of"),
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
    fields.check(completion(**{f"field{i}": i for i in range(3000)}))
    assert len(fields._seen) == 1000


def test_unknown_fields_of_objects_in_a_body_are_noted_once_for_all_of_a_list() -> None:
    fields = UnknownFields()
    messages = [{"role": "user", "content": [{"type": "text", "text": "a", "odd": 1}], "strange": 2}] * 3
    body = {"messages": messages, "stream": True, "stream_options": {"new": 3}}
    fields.check(parse(ChatBody, json.dumps(body).encode()))
    assert fields._seen == {"messages[].content[].odd", "messages[].strange", "stream_options.new"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"use_beam_search": True}, "use_beam_search"),
        ({"guided_whitespace_pattern": " ?"}, "guided_whitespace_pattern"),
        ({"mirostat": 2}, "mirostat"),
        ({"lora_path": "a"}, "lora_path"),
        ({"modalities": ["text", "audio"]}, "modalities"),
    ],
)
def test_what_other_servers_do_and_this_one_does_not_is_refused_with_what_to_do(
    fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(BadRequest, match=f"{param} is not supported: .") as caught:
        UnknownFields().check(completion(**fields))
    assert caught.value.param == param


def test_fields_of_messages_are_judged_by_themselves() -> None:
    fields = UnknownFields()

    def check(**message: Any) -> None:
        fields.check(parse(ChatBody, json.dumps({"messages": [{"role": "user", "content": "a", **message}]}).encode()))

    check(refusal=None, annotations=[], images=[], prefix=False, reasoning_effort="high")
    assert fields._seen == {"messages[].reasoning_effort"}  # a field of bodies, not of messages
    with pytest.raises(BadRequest) as caught:
        check(prefix=True)
    assert caught.value.param == "messages[0].prefix"


def test_what_asks_for_nothing_may_be_there() -> None:
    fields = UnknownFields(are_refused=True)
    for name in HARMLESS:
        fields.check(completion(**{name: "x"}))
    for refusal in (*REFUSED, *REFUSED_INSIDE):
        names = refusal.names.split()
        assert names
        assert refusal.advice
    for refusal in REFUSED:
        for name in set(refusal.names.split()) - {*CompletionBody.model_fields}:
            for value in (None, *refusal.neutral):
                fields.check(completion(**{name: value}))
    assert not fields._seen


def test_no_name_is_judged_twice() -> None:
    for table in (REFUSED, REFUSED_INSIDE):
        names = [*HARMLESS, *(name for refusal in table for name in refusal.names.split())]
        assert len(names) == len(set(names))


def test_unknown_fields_may_be_refused() -> None:
    with pytest.raises(BadRequest, match="nobody here knows the field temprature") as caught:
        UnknownFields(are_refused=True).check(completion(temprature=1))
    assert caught.value.param == "temprature"


@pytest.mark.parametrize(
    ("schema", "params"),
    [
        (CompletionBody, openai_completions.CompletionCreateParamsBase),
        (ChatBody, openai_chats.CompletionCreateParamsBase),
    ],
)
def test_every_field_that_openais_client_can_send_is_known(schema: type[Sampling], params: Any) -> None:
    for name in sorted({*params.__annotations__} - {*schema.model_fields}):
        with suppress(BadRequest):
            assert is_known(name, object()), name
