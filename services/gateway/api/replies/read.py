"""Answers that are more than content: what one choice has said so far, read as it comes."""

import secrets
from collections.abc import Sequence

from services.gateway.api.replies.reply import Json
from services.gateway.request.text import ChoiceDelta
from services.gateway.syntax.parts import AnswerForm, AnswerPart, CallArguments, CallBegun, ContentPart, joined


class ReadChoice:
    """Reads one choice, and counts the tokens of its reasoning."""

    def __init__(self, form: AnswerForm) -> None:
        self._reader = form.new_reader()
        self._count = form.new_count() if form.new_count is not None else None
        self.has_calls = False

    @property
    def num_reasoning_tokens(self) -> int:
        return self._count.num_tokens if self._count is not None else 0

    def take(self, text: str, ids: Sequence[int], *, is_last: bool) -> list[AnswerPart]:
        """Return what the next text says."""
        if self._count is not None:
            self._count.push(ids)
        parts = self._reader.push(text) if text else []
        if is_last:
            parts += self._reader.finish()
        self.has_calls |= any(isinstance(part, CallBegun) for part in parts)
        return joined(parts)

    def take_delta(self, delta: ChoiceDelta) -> list[AnswerPart]:
        return self.take(delta.text, delta.ids, is_last=delta.finish_reason is not None)

    def reason(self, finish_reason: str | None) -> str | None:
        """Return why the choice has ended, as clients are told it."""
        return "tool_calls" if finish_reason == "stop" and self.has_calls else finish_reason


def new_call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def message_of(parts: Sequence[AnswerPart]) -> Json:
    """Return the message of an answer. Reasoning goes by its name in vLLM, and by DeepSeek's older one."""
    content, reasoning = "", ""
    calls: list[Json] = []
    for part in parts:
        if isinstance(part, CallBegun):
            calls.append({"id": new_call_id(), "type": "function", "function": {"name": part.name, "arguments": ""}})
        elif isinstance(part, CallArguments):
            calls[part.call]["function"]["arguments"] += part.text
        elif isinstance(part, ContentPart):
            content += part.text
        else:
            reasoning += part.text
    message: Json = {"role": "assistant", "content": content if content or not calls else None}
    if reasoning:
        message |= {"reasoning": reasoning, "reasoning_content": reasoning}
    return {**message, "tool_calls": calls} if calls else message


def delta_of(part: AnswerPart) -> Json:
    """Return what a part adds to a message."""
    if isinstance(part, ContentPart):
        return {"content": part.text}
    if isinstance(part, CallBegun):
        function = {"name": part.name, "arguments": ""}
        return {"tool_calls": [{"index": part.call, "id": new_call_id(), "type": "function", "function": function}]}
    if isinstance(part, CallArguments):
        return {"tool_calls": [{"index": part.call, "function": {"arguments": part.text}}]}
    return {"reasoning": part.text, "reasoning_content": part.text}
