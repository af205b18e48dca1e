"""Defaults of sampling: read as vLLM reads them, and used where a request is silent."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.gateway.api.bodies.chat import ChatBody
from services.gateway.api.bodies.completion import CompletionBody
from services.gateway.api.bodies.parsing import parse
from services.gateway.api.prepare import prepare_chat, prepare_completion
from services.gateway.defaults import FILE, GenerationDefaults
from shared.errors import ModelFileError, SettingsError
from tests.support.gateway import MAX_MODEL_LEN, served_model

QWEN: dict[str, Any] = {
    "do_sample": True,
    "eos_token_id": [1, 2],
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.95,
    "min_p": None,
    "repetition_penalty": 1.05,
    "max_new_tokens": 2048,
}


LONG = "x" * (MAX_MODEL_LEN - 18)  # leaves less room than the default


def write(directory: Path, content: Any) -> Path:
    path = directory / FILE
    path.write_text(json.dumps(content))
    return path


def test_the_models_own_are_taken_unless_there_are_none(tmp_path: Path) -> None:
    assert GenerationDefaults.of("auto", tmp_path) == GenerationDefaults()
    write(tmp_path, QWEN)
    expected = GenerationDefaults(0.6, 0.95, 20, 0.0, 1.05, 2048)
    assert GenerationDefaults.of("auto", tmp_path) == expected
    assert GenerationDefaults.of("none", tmp_path) == GenerationDefaults()


def test_a_file_or_its_directory_may_be_named(tmp_path: Path) -> None:
    path = write(tmp_path, {"temperature": 0.5, "top_k": -1})
    for named in (path, tmp_path):
        assert GenerationDefaults.of(str(named), Path("/nowhere")) == GenerationDefaults(temperature=0.5)
    with pytest.raises(SettingsError, match=r"PRFAAS_GENERATION_CONFIG.*no such file"):
        GenerationDefaults.of(str(tmp_path / "other"), tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "expected a JSON object"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"temperature": -1}, "temperature is -1"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"min_p": True}, "min_p is True"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path: Path, content: Any, said: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(ModelFileError) as caught:
        GenerationDefaults.of("auto", tmp_path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_a_file_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{")
    with pytest.raises(ModelFileError, match="cannot be read as JSON"):
        GenerationDefaults.of("auto", tmp_path)


def body(**fields: Any) -> CompletionBody:
    return parse(CompletionBody, json.dumps({"prompt": "p", **fields}).encode())


def test_a_request_that_says_nothing_gets_them() -> None:
    defaults = GenerationDefaults(0.6, 0.95, 20, 0.1, 1.05, 2048)
    params = body().sampling_params(16, 100, (), defaults)
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.6, 0.95, 20, 0.1)
    assert (params.repetition_penalty, params.max_tokens) == (1.05, 16)


def test_what_a_request_says_counts_also_where_it_turns_something_off() -> None:
    defaults = GenerationDefaults(0.6, 0.95, 20, 0.1, 1.05)
    asked = body(temperature=0, top_p=1, top_k=0, min_p=0, repetition_penalty=1)
    params = asked.sampling_params(16, 100, (), defaults)
    assert (params.temperature, params.top_p, params.top_k, params.min_p, params.repetition_penalty) == (0, 1, 0, 0, 1)
    assert body(top_k=-1).sampling_params(16, 100, (), defaults).top_k == 0


@pytest.mark.parametrize(
    ("content", "fields", "expected"),
    [("hi", {}, 30), ("hi", {"max_tokens": 50}, 50), (LONG, {}, 30)],
)
def test_the_length_of_a_chats_answer(tmp_path: Path, content: str, fields: dict[str, Any], expected: int) -> None:
    """It is a default, no limit, and no more than the context has room for."""
    model = replace(served_model(tmp_path), defaults=GenerationDefaults(max_tokens=30))
    asked = {"messages": [{"role": "user", "content": content}], **fields}
    prepared = prepare_chat(model, parse(ChatBody, json.dumps(asked).encode()))
    assert prepared.requests[0].sampling.max_tokens == min(expected, MAX_MODEL_LEN - prepared.num_prompt_tokens)


def test_the_length_of_a_completion_stays_that_of_openai(tmp_path: Path) -> None:
    model = replace(served_model(tmp_path), defaults=GenerationDefaults(max_tokens=30))
    assert prepare_completion(model, body()).requests[0].sampling.max_tokens == 16
