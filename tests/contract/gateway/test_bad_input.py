"""Bad input gets the right status and OpenAI's error object, and the next request works."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.support.gateway import MAX_MODEL_LEN, VOCAB_SIZE, ScriptedSuite, running_suite

USER = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def suite(tmp_path: Path) -> AsyncIterator[ScriptedSuite]:
    async with running_suite(tmp_path, max_body_bytes=20_000) as suite:
        yield suite


@pytest.fixture
async def strict(tmp_path: Path) -> AsyncIterator[ScriptedSuite]:
    async with running_suite(tmp_path, unknown_fields="refuse") as suite:
        yield suite


async def assert_refused(
    suite: ScriptedSuite, path: str, body: bytes, status: int, param: str | None, code: str, method: str = "POST"
) -> str:
    async with suite.client.request(method, path, data=body) as response:
        assert response.status == status, await response.text()
        assert response.content_type == "application/json"
        assert response.headers["X-Request-Id"]
        answer = await response.json()
    assert set(answer) == {"error"}
    error = answer["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"], error["code"]) == (param, code)
    assert error["type"] == "invalid_request_error"
    assert suite.decode.calls == []
    await suite.works()
    message: str = error["message"]
    return message


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        pytest.param({"prompt": ""}, 400, "prompt", "invalid_request", id="empty prompt"),
        pytest.param({"prompt": []}, 400, "prompt", "invalid_request", id="no prompt ids"),
        pytest.param({"prompt": [""]}, 400, "prompt", "invalid_request", id="an empty prompt among several"),
        pytest.param({}, 400, "prompt", "invalid_request", id="prompt missing"),
        pytest.param({"prompt": {"a": 1}}, 400, "prompt", "invalid_request", id="prompt of a wrong type"),
        pytest.param({"prompt": [1, "a"]}, 400, "prompt[1]", "invalid_request", id="prompt of mixed types"),
        pytest.param({"prompt": "p" * (MAX_MODEL_LEN + 1)}, 400, "prompt", "context_length_exceeded", id="too long"),
        pytest.param({"max_tokens": MAX_MODEL_LEN}, 400, "prompt", "context_length_exceeded", id="asks for too much"),
        pytest.param({"model": "gpt-5"}, 404, "model", "model_not_found", id="unknown model"),
        pytest.param({"model": 7}, 400, "model", "invalid_request", id="model of a wrong type"),
        pytest.param({"prompt": [VOCAB_SIZE]}, 400, "prompt", "invalid_request", id="unknown token id"),
        pytest.param({"prompt": [-1]}, 400, "prompt[0]", "invalid_request", id="negative token id"),
        pytest.param({"prompt": [2**40]}, 400, "prompt[0]", "invalid_request", id="absurd token id"),
        pytest.param({"max_tokens": -5}, 400, "max_tokens", "invalid_request", id="negative max_tokens"),
        pytest.param({"max_tokens": 10**40}, 400, "max_tokens", "invalid_request", id="absurd max_tokens"),
        pytest.param({"max_tokens": "10"}, 400, "max_tokens", "invalid_request", id="max_tokens as text"),
        pytest.param({"max_tokens": 1.5}, 400, "max_tokens", "invalid_request", id="fractional max_tokens"),
        pytest.param({"max_tokens": True}, 400, "max_tokens", "invalid_request", id="boolean max_tokens"),
        pytest.param({"temperature": -1}, 400, "temperature", "invalid_request", id="negative temperature"),
        pytest.param({"temperature": 1e9}, 400, "temperature", "invalid_request", id="absurd temperature"),
        pytest.param({"temperature": float("nan")}, 400, "temperature", "invalid_request", id="temperature NaN"),
        pytest.param({"top_p": 0}, 400, "top_p", "invalid_request", id="top_p 0"),
        pytest.param({"top_k": -2}, 400, "top_k", "invalid_request", id="negative top_k"),
        pytest.param({"min_tokens": 20, "max_tokens": 4}, 400, "min_tokens", "invalid_request", id="min above max"),
        pytest.param({"seed": 2**64}, 400, "seed", "invalid_request", id="absurd seed"),
        pytest.param({"stop": [""]}, 400, "stop[0]", "invalid_request", id="empty stop string"),
        pytest.param({"stop": ["a"] * 17}, 400, "stop", "invalid_request", id="too many stop strings"),
        pytest.param({"stop": 5}, 400, "stop", "invalid_request", id="stop of a wrong type"),
        pytest.param({"stop_token_ids": [9999]}, 400, "stop_token_ids", "invalid_request", id="unknown stop token"),
        pytest.param({"cache_salt": ""}, 400, "cache_salt", "invalid_request", id="empty salt"),
        pytest.param({"stream": "yes"}, 400, "stream", "invalid_request", id="stream of a wrong type"),
        pytest.param(
            {"stream_options": {}}, 400, "stream_options", "invalid_request", id="stream options without stream"
        ),
        pytest.param({"n": 129}, 400, "n", "invalid_request", id="n too large"),
        pytest.param({"prompt": ["a"] * 65, "n": 2}, 400, "n", "invalid_request", id="too many choices in all"),
        pytest.param({"n": 0}, 400, "n", "invalid_request", id="n out of range"),
        pytest.param({"logprobs": 21}, 400, "logprobs", "invalid_request", id="too many logprobs"),
        pytest.param({"logprobs": True}, 400, "logprobs", "invalid_request", id="logprobs as in chats"),
        pytest.param({"prompt_logprobs": 21}, 400, "prompt_logprobs", "invalid_request", id="prompt_logprobs too many"),
        pytest.param({"prompt_logprobs": -1}, 400, "prompt_logprobs", "invalid_request", id="prompt_logprobs of all"),
        pytest.param(
            {"prompt_logprobs": 0, "stream": True}, 400, "prompt_logprobs", "invalid_request", id="streamed prompt"
        ),
        pytest.param({"best_of": 2, "n": 3}, 400, "best_of", "invalid_request", id="best_of below n"),
        pytest.param({"best_of": 129}, 400, "best_of", "invalid_request", id="best_of too many"),
        pytest.param({"best_of": 2, "stream": True}, 400, "best_of", "invalid_request", id="best_of streamed"),
        pytest.param({"presence_penalty": 9}, 400, "presence_penalty", "invalid_request", id="presence out of range"),
        pytest.param({"frequency_penalty": -3}, 400, "frequency_penalty", "invalid_request", id="frequency too low"),
        pytest.param({"repetition_penalty": 0}, 400, "repetition_penalty", "invalid_request", id="repetition 0"),
        pytest.param({"logit_bias": {"5": 101}}, 400, "logit_bias.5", "invalid_request", id="bias out of range"),
        pytest.param({"logit_bias": {"x": 1}}, 400, "logit_bias", "invalid_request", id="bias of no token id"),
        pytest.param({"logit_bias": {"257": 1}}, 400, "logit_bias", "invalid_request", id="bias of an unknown token"),
        pytest.param({"logit_bias": [1]}, 400, "logit_bias", "invalid_request", id="bias of a wrong type"),
        pytest.param({"min_p": 1.1}, 400, "min_p", "invalid_request", id="min_p out of range"),
    ],
)
async def test_bad_completions(suite: ScriptedSuite, body: dict[str, Any], status: int, param: str, code: str) -> None:
    full = {"prompt": "hello", **body} if body else {}
    message = await assert_refused(suite, "/v1/completions", json.dumps(full).encode(), status, param, code)
    assert message
    if code == "context_length_exceeded":
        assert str(MAX_MODEL_LEN) in message
        assert "tokens" in message


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"messages": []}, "messages", "invalid_request"),
        ({"messages": "hi"}, "messages", "invalid_request"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role", "invalid_request"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role", "invalid_request"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_request"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].type",
            "invalid_request",
        ),
        ({"messages": [{"role": "user", "content": "x" * 3000}]}, "messages", "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": "x" * MAX_MODEL_LEN}]}, "messages", "context_length_exceeded"),
        ({"messages": USER, "logprobs": 5}, "logprobs", "invalid_request"),
        ({"messages": USER, "top_logprobs": 3}, "top_logprobs", "invalid_request"),
        ({"messages": USER, "logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_request"),
        ({"messages": USER, "echo": True}, "echo", "invalid_request"),
        ({"messages": USER, "tools": [{"type": "function"}]}, "tools[0].function", "invalid_request"),
        ({"messages": USER, "response_format": {"type": "xml"}}, "response_format.type", "invalid_request"),
        ({"messages": USER, "max_completion_tokens": -1}, "max_completion_tokens", "invalid_request"),
    ],
)
async def test_bad_chats(suite: ScriptedSuite, body: dict[str, Any], param: str, code: str) -> None:
    await assert_refused(suite, "/v1/chat/completions", json.dumps(body).encode(), 400, param, code)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"not json", b'{"prompt": "\xff"}', b'{"prompt": "\\ud800"}', b"[1]", b"null", b"[" * 5000],
    ids=["empty", "cut off", "no JSON", "invalid UTF-8", "half a surrogate", "array", "null", "deep"],
)
async def test_bodies_that_are_no_json_objects(suite: ScriptedSuite, path: str, body: bytes) -> None:
    await assert_refused(suite, path, body, 400, None, "invalid_request")


async def test_a_body_over_the_limit_is_413_announced_or_not(suite: ScriptedSuite) -> None:
    big = json.dumps({"prompt": "x" * 30_000}).encode()
    await assert_refused(suite, "/v1/completions", big, 413, None, "body_too_large")
    suite.decode.calls.clear()

    async def chunks() -> AsyncIterator[bytes]:
        yield big

    async with suite.client.post("/v1/completions", data=chunks()) as response:
        assert response.status == 413
        assert (await response.json())["error"]["code"] == "body_too_large"
    await suite.works()


async def test_unknown_paths_and_wrong_methods_are_json_errors(suite: ScriptedSuite) -> None:
    await assert_refused(suite, "/v1/nothing", b"{}", 404, None, "not_found")
    suite.decode.calls.clear()
    message = await assert_refused(suite, "/v1/completions", b"", 405, None, "method_not_allowed", method="GET")
    assert "POST" in message


async def test_unknown_and_neutral_fields_are_accepted_and_logged_once(suite: ScriptedSuite) -> None:
    neutral = {
        "n": 1,
        "best_of": 1,
        "echo": False,
        "presence_penalty": 0,
        "logit_bias": {},
        "logprobs": None,
        "user": "me",
    }
    with capture_logs() as logs:
        for _ in range(2):
            answer = await suite.complete(frobnicate=3, **neutral)
            assert answer["choices"][0]["text"] == "hello there"
    noted = [entry["field"] for entry in logs if entry["event"] == "unknown_field_ignored"]
    assert noted == ["frobnicate"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": USER}, "prompt"),
        ("/detokenize", {"tokens": [VOCAB_SIZE]}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
    ],
)
async def test_bad_tokenizer_requests(suite: ScriptedSuite, path: str, body: dict[str, Any], param: str) -> None:
    await assert_refused(suite, path, json.dumps(body).encode(), 400, param, "invalid_request")


@pytest.mark.parametrize(
    ("path", "body", "param", "advice"),
    [
        ("completions", {"prompt": "hi", "use_beam_search": True}, "use_beam_search", "n gives several answers"),
        ("chat/completions", {"messages": USER, "n_predict": 5}, "n_predict", "use max_tokens"),
        ("completions", {"prompt": "hi", "echo": True, "truncate_prompt_tokens": 1}, "echo", "does not go with"),
        ("completions", {"prompt": "hi", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "at least one"),
    ],
)
async def test_fields_of_other_servers_are_refused_with_what_to_do(
    suite: ScriptedSuite, path: str, body: dict[str, Any], param: str, advice: str
) -> None:
    data = json.dumps(body).encode()
    assert advice in await assert_refused(suite, f"/v1/{path}", data, 400, param, "invalid_request")


async def test_unknown_fields_are_accepted_unless_a_setting_refuses_them(
    suite: ScriptedSuite, strict: ScriptedSuite
) -> None:
    body = {"prompt": "hi", "temprature": 0.5, "metadata": {"a": "b"}}
    async with suite.client.post("/v1/completions", json=body) as response:
        assert response.status == 200
    await assert_refused(strict, "/v1/completions", json.dumps(body).encode(), 400, "temprature", "invalid_request")


@pytest.mark.parametrize(
    ("method", "path", "word"),
    [
        ("POST", "/v1/embeddings", "embeddings"),
        ("POST", "/v1/images/generations", "images"),
        ("POST", "/v1/audio/transcriptions", "audio"),
        ("POST", "/v1/moderations", "moderation"),
        ("GET", "/v1/files", "files"),
        ("POST", "/v1/batches", "batches"),
        ("POST", "/v1/fine_tuning/jobs", "training"),
        ("POST", "/v1/assistants", "assistants"),
        ("POST", "/rerank", "ranking"),
        ("POST", "/v1/messages", "Anthropic"),
    ],
)
async def test_endpoints_of_others_are_refused_by_name(suite: ScriptedSuite, method: str, path: str, word: str) -> None:
    message = await assert_refused(suite, path, b"{}", 404, None, "endpoint_not_supported", method)
    assert word in message
    assert "/v1/chat/completions" in message
