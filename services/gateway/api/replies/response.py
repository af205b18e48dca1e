"""OpenAI's response object, and the events of its stream."""

import time
from collections.abc import Iterable, Sequence
from typing import Any

from services.gateway.api.bodies.responses import ResponsesBody
from services.gateway.api.replies.items import OutputItems
from services.gateway.api.replies.logprobs import chat_logprobs
from services.gateway.api.replies.read import ReadChoice
from services.gateway.api.replies.reply import Choice, Json, Reply, encode
from services.gateway.request.text import ChoiceDelta, ShownToken
from services.gateway.request.usage import Usage
from services.gateway.syntax.answers import PLAIN, AnswerReading, reader_of
from services.gateway.syntax.parts import AnswerForm, ContentPart
from shared.model.text.tokenizer import Tokenizer


class ResponseReply(Reply):
    """A response has one choice. Its events are numbered."""

    kind = "response"
    id_prefix = "resp"
    names_events = True

    def __init__(self, *args: Any, **options: Any) -> None:
        """Take what `Reply` takes."""
        super().__init__(*args, **options)
        self._id = str(self._head["id"]).replace("-", "_", 1)
        self._items = OutputItems(self._id)
        self._read = ReadChoice(self._form or AnswerForm(lambda: reader_of(PLAIN, AnswerReading())))
        self._asked: Json = {}
        self._is_cut_off = False
        self._num_events = 0

    def repeats(self, body: Any) -> None:
        """Take what the response says of its request."""
        assert isinstance(body, ResponsesBody)
        self._asked = _asked(body)

    def whole(self, choices: Sequence[Choice], usage: Usage) -> Json:
        (choice,) = choices
        for _ in self._told_events(ChoiceDelta(0, choice.text, choice.ids, choice.finish_reason, choice.tokens)):
            pass
        return self._response(usage)

    def opening(self, num_choices: int) -> list[str]:
        begun = self._response(None)
        kinds = ("response.created", "response.in_progress")
        return self._numbered({"type": kind, "response": begun} for kind in kinds)

    def news(self, delta: ChoiceDelta, usage: Usage | None = None) -> list[str]:
        """Return events; what a response has cost is told at its end."""
        return self._numbered(self._told_events(delta))

    def closing(self, usage: Usage) -> list[str]:
        kind = "response.incomplete" if self._is_cut_off else "response.completed"
        return self._numbered([{"type": kind, "response": self._response(usage)}])

    def _told_events(self, delta: ChoiceDelta) -> Iterable[Json]:
        logprobs = self._told(delta.tokens) or {"content": []}
        for part in self._read.take_delta(delta):
            yield from self._items.take(part, logprobs["content"] if isinstance(part, ContentPart) else ())
        if delta.finish_reason is not None:
            self._is_cut_off = delta.finish_reason == "length"
            yield from self._items.finish("incomplete" if self._is_cut_off else "completed")

    def _numbered(self, events: Iterable[Json]) -> list[str]:
        found = []
        for event in events:
            found.append(encode({**event, "sequence_number": self._num_events}))
            self._num_events += 1
        return found

    def _response(self, usage: Usage | None) -> Json:
        """Return the response as it is now; with its usage it is over."""
        status = "in_progress" if usage is None else "incomplete" if self._is_cut_off else "completed"
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._head["created"],
            "completed_at": None if usage is None else int(time.time()),
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": self._head["model"],
            "output": list(self._items.items),
            **self._asked,
            "usage": None if usage is None else self._usage(usage),
        }

    def _usage(self, usage: Usage) -> Json:
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self._read.num_reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }

    def _logprobs(self, tokens: Sequence[ShownToken], tokenizer: Tokenizer) -> Json:
        return chat_logprobs(tokens, tokenizer)


def _asked(body: ResponsesBody) -> Json:
    """Return what a response repeats of its request, with what the fields are where they were left out."""
    text = {} if body.text is None else body.text.model_dump(by_alias=True, exclude_none=True)
    choice = body.tool_choice
    reasoning = body.reasoning
    return {
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": reasoning.effort if reasoning else None, "summary": None},
        "service_tier": "default",
        "store": False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": {"type": "text"}, **text},
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump() if choice else "auto",
        "tools": [
            _tool(tool.model_dump(include={"type", "name", "description", "parameters", "strict"}))
            for tool in body.tools or ()
        ],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "user": body.user,
    }


def _tool(tool: Json) -> Json:
    return {**tool, "strict": bool(tool["strict"])}
