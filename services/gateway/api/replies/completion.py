"""OpenAI's completion object."""

from collections.abc import Sequence

from services.gateway.api.replies.logprobs import completion_logprobs
from services.gateway.api.replies.reply import Choice, ChoicesReply, Json
from services.gateway.request.text import ChoiceDelta, ShownToken
from shared.model.text.tokenizer import Tokenizer


class CompletionReply(ChoicesReply):
    kind = "completion"
    id_prefix = "cmpl"
    whole_object = chunk_object = "text_completion"

    def _choice(self, index: int, choice: Choice) -> Json:
        shown = {"index": index, "text": choice.text, "logprobs": None, "finish_reason": choice.finish_reason}
        return {**shown, **self._prompt_logprobs(choice)}

    def _logprobs(self, tokens: Sequence[ShownToken], tokenizer: Tokenizer) -> Json:
        return completion_logprobs(tokens, tokenizer)

    def _delta_choice(self, delta: ChoiceDelta) -> Json:
        return {"index": delta.choice, "text": delta.text, "logprobs": None, "finish_reason": delta.finish_reason}
