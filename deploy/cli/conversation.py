"""A chat with a gateway: asks, hands on the text as it comes, keeps what was said."""

import json
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from deploy.cli.failure import CommandFailed
from deploy.cli.gateway import GatewayClient

DONE = "[DONE]"


@dataclass
class ChatAnswer:
    """One answer, whole or as far as it came. Times are seconds from the request."""

    text: str = ""
    id: str = ""  # of the answer; `prfaas trace` takes it
    finish_reason: str | None = None
    first_text_s: float | None = None  # until the first piece of text was here
    duration_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "text": self.text,
            "finish_reason": self.finish_reason,
            "ttft_s": self.first_text_s,
            "duration_s": self.duration_s,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": self.completion_tokens,
        }

    def summary(self) -> str:
        """Return one line of figures."""
        parts = [f"{self.prompt_tokens} prompt tokens, {self.cached_tokens} of them cached"]
        if self.first_text_s is not None:
            parts.append(f"first text after {self.first_text_s:.2f} s")
        parts.append(f"{self.completion_tokens} tokens in {self.duration_s:.2f} s")
        if self.finish_reason == "length":
            parts.append("cut off at the limit")
        return f"[{'; '.join(parts)}]"


@dataclass
class ChatSession:
    """What was said so far, as messages of OpenAI's API. `ask` adds a question and what was answered of it."""

    client: GatewayClient
    options: dict[str, Any] = field(default_factory=dict)  # max_tokens, temperature
    messages: list[dict[str, str]] = field(default_factory=list)

    def ask(self, question: str, on_text: Callable[[str], None], answer: ChatAnswer | None = None) -> ChatAnswer:
        """Return the answer after each piece of its text went to `on_text`; `answer` is filled on the way.

        Raises `CommandFailed`. Whatever is raised, KeyboardInterrupt included, the question stays said only if some
        text came for it.
        """
        answer = answer if answer is not None else ChatAnswer()
        self.messages.append({"role": "user", "content": question})
        try:
            self._stream(answer, on_text)
        finally:
            if answer.text:
                self.messages.append({"role": "assistant", "content": answer.text})
            else:
                self.messages.pop()
        return answer

    def _stream(self, answer: ChatAnswer, on_text: Callable[[str], None]) -> None:
        body = {**self.options, "messages": self.messages, "stream": True, "stream_options": {"include_usage": True}}
        began, is_whole = time.monotonic(), False
        with closing(self.client.events("/v1/chat/completions", body)) as events:
            for data in events:
                answer.duration_s = time.monotonic() - began
                if data == DONE:
                    is_whole = True  # read on to the end: else the gateway takes the request for a cancelled one
                else:
                    self._take(json.loads(data), answer, on_text)
        if not is_whole:
            raise CommandFailed("the answer broke off: the gateway closed the connection")

    def _take(self, chunk: dict[str, Any], answer: ChatAnswer, on_text: Callable[[str], None]) -> None:
        if "error" in chunk:
            raise CommandFailed(f"the answer broke off: {chunk['error'].get('message', chunk['error'])}")
        answer.id = chunk.get("id", answer.id)
        for choice in chunk.get("choices", ()):
            if text := choice["delta"].get("content"):
                if answer.first_text_s is None:
                    answer.first_text_s = answer.duration_s
                answer.text += text
                on_text(text)
            answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
        if usage := chunk.get("usage"):
            answer.prompt_tokens, answer.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]
            answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
