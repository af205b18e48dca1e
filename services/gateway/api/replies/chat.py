"""OpenAI's chat completion object."""

from collections.abc import Sequence

from services.gateway.api.replies.logprobs import chat_logprobs
from services.gateway.api.replies.reply import Choice, Json, Reply
from services.gateway.request.text import ChoiceDelta, ShownToken
from services.gateway.request.usage import Usage
from shared.model.text.tokenizer import Tokenizer


class ChatReply(Reply):
    kind = "chat"
    id_prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def whole(self, choices: Sequence[Choice], usage: Usage) -> Json:
        return {**super().whole(choices, usage), **self._prompt_logprobs(choices[0])}

    def _choice(self, index: int, choice: Choice) -> Json:
        message = {"role": "assistant", "content": choice.text}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": choice.finish_reason}

    def _logprobs(self, tokens: Sequence[ShownToken], tokenizer: Tokenizer) -> Json:
        return chat_logprobs(tokens, tokenizer)

    def opening(self, num_choices: int) -> list[str]:
        first = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        return [self._chunk({"index": index, **first}) for index in range(num_choices)]

    def _delta_choice(self, delta: ChoiceDelta) -> Json:
        content = {"content": delta.text} if delta.text else {}
        return {"index": delta.choice, "delta": content, "logprobs": None, "finish_reason": delta.finish_reason}
