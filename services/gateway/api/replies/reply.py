"""What all shapes of an answer have in common, whole and in chunks."""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

from services.gateway.api.replies.logprobs import PromptLogprobs
from services.gateway.request.text import ChoiceDelta, ScoredPrompt, ShownToken
from services.gateway.request.usage import Usage
from services.gateway.syntax.parts import AnswerForm
from shared.ids import RequestId
from shared.model.text.tokenizer import Tokenizer
from shared.workers.decode import FinishReason

Json = dict[str, Any]

encode = json.JSONEncoder(ensure_ascii=False).encode
"""One encoder for all events: `json.dumps` makes one for each that is not to escape what is not ASCII."""


_TEXT = "\0"
"""Stands for a chunk's text, behind which nothing of a chunk is in these quotes."""


_NO_USAGE = "null}"
"""The end of a chunk that may tell usage and does not."""


class Choice(NamedTuple):
    """A finished choice."""

    text: str
    ids: tuple[int, ...]
    finish_reason: FinishReason
    tokens: tuple[ShownToken, ...] = ()  # of the text, if log-probabilities were asked for
    prompt: ScoredPrompt | None = None  # of the choice


class Reply(ABC):
    """Shapes the answer to one request, whole and as the chunks of a stream, each as JSON.

    `include_usage` concerns streams only. `with_token_ids` adds `token_ids` to each choice: the ids behind its text, as
    vLLM's `return_token_ids` does. `tokenizer` spells the tokens of log-probabilities; without it there are none.
    `of_prompts` spells those of prompts. `form` says how answers are read, where they may be more than content.
    """

    kind: ClassVar[str]  # of request, in a word
    id_prefix: ClassVar[str]
    names_events: ClassVar[bool] = False  # of its stream, which then ends without a mark

    def __init__(
        self,
        request_id: RequestId,
        model_name: str,
        *,
        include_usage: bool,
        with_token_ids: bool = False,
        tokenizer: Tokenizer | None = None,
        of_prompts: PromptLogprobs | None = None,
        form: AnswerForm | None = None,
    ) -> None:
        self._head = {"id": f"{self.id_prefix}-{request_id}", "created": int(time.time()), "model": model_name}
        self._include_usage = include_usage
        self._with_token_ids = with_token_ids
        self._tokenizer = tokenizer
        self._of_prompts = of_prompts
        self._form = form

    def repeats(self, _body: Any) -> None:  # noqa: B027 - most say nothing of their request
        """Take what the answer says of its request's body."""

    @abstractmethod
    def whole(self, choices: Sequence[Choice], usage: Usage) -> Json:
        """Return the answer to a request that does not stream."""

    @abstractmethod
    def opening(self, num_choices: int) -> list[str]:
        """Return the chunks that go before any text."""

    @abstractmethod
    def news(self, delta: ChoiceDelta, usage: Usage | None = None) -> list[str]:
        """Return the chunks that say what was added. `usage`: what the request has cost so far, if each tells it."""

    @abstractmethod
    def closing(self, usage: Usage) -> list[str]:
        """Return the chunks that go after all text."""

    def _told(self, tokens: Sequence[ShownToken]) -> Json | None:
        return None if self._tokenizer is None else self._logprobs(tokens, self._tokenizer)

    @abstractmethod
    def _logprobs(self, tokens: Sequence[ShownToken], tokenizer: Tokenizer) -> Json: ...


class ChoicesReply(Reply):
    """An answer whose choices are told side by side."""

    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, *args: Any, **options: Any) -> None:
        """Take what `Reply` takes."""
        super().__init__(*args, **options)
        self._around_texts: dict[int, tuple[str, str]] = {}

    def whole(self, choices: Sequence[Choice], usage: Usage) -> Json:
        items = [
            self._with_ids({**self._choice(index, choice), "logprobs": self._told(choice.tokens)}, choice.ids)
            for index, choice in enumerate(choices)
        ]
        return {**self._head, "object": self.whole_object, "choices": items, "usage": self._usage(usage)}

    def opening(self, num_choices: int) -> list[str]:
        return []

    def news(self, delta: ChoiceDelta, usage: Usage | None = None) -> list[str]:
        chunks = self.chunks(delta)
        if usage is None:
            return chunks
        counts = encode(counts_object(usage))
        return [f"{chunk.removesuffix(_NO_USAGE)}{counts}}}" for chunk in chunks]

    def chunks(self, delta: ChoiceDelta) -> list[str]:
        """Return the chunks that say what was added, as JSON: none for tokens that add no text, unless their ids are
        asked for."""
        return [self.chunk(delta)] if delta.text or delta.finish_reason or self._with_token_ids else []

    def chunk(self, delta: ChoiceDelta) -> str:
        """Return a chunk as JSON."""
        if delta.text and delta.finish_reason is None and not (delta.tokens or self._with_token_ids):
            before, after = self._around_text(delta.choice)
            return f"{before}{encode(delta.text)}{after}"
        choice = self._delta_choice(delta)
        if delta.tokens:
            choice["logprobs"] = self._told(delta.tokens)
        return self._chunk(self._with_ids(choice, delta.ids))

    def closing(self, usage: Usage) -> list[str]:
        if not self._include_usage:
            return []
        return [encode({**self._head, "object": self.chunk_object, "choices": [], "usage": self._usage(usage)})]

    def _usage(self, usage: Usage) -> Json:
        return usage_object(usage)

    def _chunk(self, choice: Json) -> str:
        before, after = self._envelope
        return f"{before}{encode(choice)}{after}"

    def _around_text(self, index: int) -> tuple[str, str]:
        """Return what goes around the text of most chunks of a choice."""
        found = self._around_texts.get(index)
        if found is None:
            shape = self._chunk(self._delta_choice(ChoiceDelta(index, _TEXT, (), None)))
            before, _, after = shape.rpartition(encode(_TEXT))
            found = self._around_texts[index] = before, after
        return found

    @cached_property
    def _envelope(self) -> tuple[str, str]:
        """What goes around the choice of each chunk."""
        before = encode({**self._head, "object": self.chunk_object})
        return before[:-1] + ', "choices": [', f'], "usage": {_NO_USAGE}' if self._include_usage else "]}"

    def _with_ids(self, choice: Json, ids: Sequence[int]) -> Json:
        return {**choice, "token_ids": list(ids)} if self._with_token_ids else choice

    def _prompt_logprobs(self, choice: Choice) -> Json:
        """Return a field with what is told of a choice's prompt, if that was asked for."""
        if self._of_prompts is None or choice.prompt is None:
            return {}
        return {"prompt_logprobs": self._of_prompts.told(choice.prompt)}

    @abstractmethod
    def _choice(self, index: int, choice: Choice) -> Json: ...

    @abstractmethod
    def _delta_choice(self, delta: ChoiceDelta) -> Json: ...


def usage_object(usage: Usage) -> Json:
    return {**counts_object(usage), "prompt_tokens_details": {"cached_tokens": usage.cached_tokens}}


def counts_object(usage: Usage) -> Json:
    """Return what is known before the end: until then nobody knows what was cached."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
