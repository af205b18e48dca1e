"""OpenAI's chat completion object."""

from collections.abc import Sequence
from typing import Any

from services.gateway.api.replies.logprobs import chat_logprobs
from services.gateway.api.replies.read import ReadChoice, delta_of, message_of
from services.gateway.api.replies.reply import Choice, ChoicesReply, Json, usage_object
from services.gateway.request.text import ChoiceDelta, ShownToken
from services.gateway.request.usage import Usage
from shared.model.text.tokenizer import Tokenizer


class ChatReply(ChoicesReply):
    kind = "chat"
    id_prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, *args: Any, **options: Any) -> None:
        """Take what `Reply` takes."""
        super().__init__(*args, **options)
        self._read: dict[int, ReadChoice] = {}  # where answers are more than content
        self._untold: dict[int, ChoiceDelta] = {}  # ids and log-probabilities of what no chunk has told yet

    def whole(self, choices: Sequence[Choice], usage: Usage) -> Json:
        return {**super().whole(choices, usage), **self._prompt_logprobs(choices[0])}

    def _choice(self, index: int, choice: Choice) -> Json:
        message: Json = {"role": "assistant", "content": choice.text}
        reason: str | None = choice.finish_reason
        if (read := self._reading(index)) is not None:
            message = message_of(read.take(choice.text, choice.ids, is_last=True))
            reason = read.reason(reason)
        return {"index": index, "message": message, "logprobs": None, "finish_reason": reason}

    def _logprobs(self, tokens: Sequence[ShownToken], tokenizer: Tokenizer) -> Json:
        return chat_logprobs(tokens, tokenizer)

    def opening(self, num_choices: int) -> list[str]:
        first = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        return [self._chunk({"index": index, **first}) for index in range(num_choices)]

    def chunks(self, delta: ChoiceDelta) -> list[str]:
        """Tell each part by a chunk of its own; log-probabilities and ids go with the first."""
        read = self._reading(delta.choice)
        if read is None:
            return super().chunks(delta)
        bodies = [delta_of(part) for part in read.take_delta(delta)]
        if delta.choice in self._untold:
            delta = self._untold.pop(delta.choice).joined(delta)
        if delta.finish_reason is not None or (self._with_token_ids and not bodies):
            bodies.append({})
        if not bodies:
            self._untold[delta.choice] = delta
            return []
        items = [self._item(delta.choice, body) for body in bodies]
        items[0] = self._with_ids(
            {**items[0], "logprobs": self._told(delta.tokens) if delta.tokens else None}, delta.ids
        )
        items[-1]["finish_reason"] = read.reason(delta.finish_reason)
        return [self._chunk(item) for item in items]

    def _delta_choice(self, delta: ChoiceDelta) -> Json:
        content = {"content": delta.text} if delta.text else {}
        return {**self._item(delta.choice, content), "finish_reason": delta.finish_reason}

    def _item(self, index: int, body: Json) -> Json:
        return {"index": index, "delta": body, "logprobs": None, "finish_reason": None}

    def _reading(self, index: int) -> ReadChoice | None:
        if self._form is None:
            return None
        return self._read.setdefault(index, ReadChoice(self._form))

    def _usage(self, usage: Usage) -> Json:
        told = usage_object(usage)
        if self._form is None or self._form.new_count is None:
            return told
        num_tokens = sum(read.num_reasoning_tokens for read in self._read.values())
        return {**told, "completion_tokens_details": {"reasoning_tokens": num_tokens}}
