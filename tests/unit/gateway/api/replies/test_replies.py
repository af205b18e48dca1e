"""Chunks of streams: what is encoded once for an answer, against the whole of each."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.api.replies.chat import ChatReply
from services.gateway.api.replies.completion import CompletionReply
from services.gateway.api.replies.reply import ChoicesReply
from services.gateway.request.text import ChoiceDelta
from services.gateway.request.usage import Usage
from shared.ids import RequestId

SHAPES = st.sampled_from([CompletionReply, ChatReply])
TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.just("\0") | st.just('"\\u0000"')


def reply_of(shape: type[ChoicesReply], name: str = "tiny", **more: Any) -> ChoicesReply:
    return shape(RequestId("r"), name, include_usage=more.pop("include_usage", False), **more)


def delta_of(shape: type[ChoicesReply], text: str) -> Any:
    if shape is CompletionReply:
        return {"text": text}
    return {"delta": {"content": text} if text else {}}


@given(SHAPES, TEXTS, TEXTS, st.integers(0, 3), st.sampled_from([None, "stop"]), st.booleans(), st.booleans())
def test_a_chunk_says_what_was_added(
    shape: type[ChoicesReply], name: str, text: str, index: int, end: Any, include_usage: bool, with_token_ids: bool
) -> None:
    reply = reply_of(shape, name, include_usage=include_usage, with_token_ids=with_token_ids)
    for _ in range(2):
        said = json.loads(reply.chunk(ChoiceDelta(index, text, (7, 8), end)))
        ids = {"token_ids": [7, 8]} if with_token_ids else {}
        choice = {"index": index, **delta_of(shape, text), "logprobs": None, "finish_reason": end, **ids}
        assert said["choices"] == [choice]
        assert (said["model"], said["object"]) == (name, shape.chunk_object)
        assert ("usage" in said, said.get("usage")) == (include_usage, None)


@pytest.mark.parametrize("shape", [CompletionReply, ChatReply])
def test_usage_comes_last_and_roles_come_first(shape: type[ChoicesReply]) -> None:
    (closing,) = reply_of(shape, include_usage=True).closing(Usage(3, 2, 1))
    assert json.loads(closing)["usage"]["total_tokens"] == 5
    assert json.loads(closing)["choices"] == []
    assert reply_of(shape).closing(Usage(3, 2, 1)) == []
    opening = [json.loads(chunk) for chunk in reply_of(shape).opening(2)]
    roles = [chunk["choices"][0]["delta"]["role"] for chunk in opening]
    assert roles == (["assistant", "assistant"] if shape is ChatReply else [])
