"""Log-probabilities as clients get them: OpenAI's two shapes, and how a token is spelt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.gateway.request.text import ScoredPrompt, ShownToken
from shared.model.text.tokenizer import Tokenizer

_LEAST = -9999.0  # JSON has no infinity; vLLM's floor


def completion_logprobs(tokens: Sequence[ShownToken], tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the object of `/v1/completions`. A token's alternatives include itself: one more than asked for, if it
    is not among the likeliest."""
    return {
        "tokens": [_name(token.id, tokenizer) for token in tokens],
        "token_logprobs": [None if token.logprobs is None else _bounded(token.logprobs.logprob) for token in tokens],
        "top_logprobs": [_alternatives(token, tokenizer) for token in tokens],
        "text_offset": [token.offset for token in tokens],
    }


def chat_logprobs(tokens: Sequence[ShownToken], tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the object of `/v1/chat/completions`."""
    return {
        "content": [
            {
                **_entry(token.id, token.logprobs.logprob, tokenizer),
                "top_logprobs": [_entry(token_id, value, tokenizer) for token_id, value in token.logprobs.top],
            }
            for token in tokens
            if token.logprobs is not None
        ]
    }


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Spells log-probabilities of prompts as vLLM does."""

    tokenizer: Tokenizer
    num_top: int

    def told(self, prompt: ScoredPrompt) -> list[dict[str, Any] | None]:
        """Return, for each token, itself and the likeliest ones by their ids; None for the first, which follows
        nothing."""
        told: list[dict[str, Any] | None] = [None]
        for token_id, (logprob, top, rank) in zip(prompt.token_ids[1:], prompt.logprobs, strict=True):
            entries = {str(token_id): self._entry(token_id, logprob, rank)}
            for place, (other, value) in enumerate(top[: self.num_top], start=1):
                entries.setdefault(str(other), self._entry(other, value, place))
            told.append(entries)
        return told

    def _entry(self, token_id: int, logprob: float, rank: int) -> dict[str, Any]:
        decoded = self.tokenizer.token_bytes(token_id).decode(errors="replace")
        return {"logprob": _bounded(logprob), "rank": rank, "decoded_token": decoded}


def _entry(token_id: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    data = tokenizer.token_bytes(token_id)
    return {"token": _spelt(data, ""), "logprob": _bounded(logprob), "bytes": list(data)}


def _alternatives(token: ShownToken, tokenizer: Tokenizer) -> dict[str, float] | None:
    if token.logprobs is None:
        return None
    named: dict[str, float] = {}
    for token_id, logprob in (*token.logprobs.top, (token.id, token.logprobs.logprob)):
        named.setdefault(_name(token_id, tokenizer), _bounded(logprob))  # of tokens with one name, the likeliest
    return named


def _name(token_id: int, tokenizer: Tokenizer) -> str:
    return _spelt(tokenizer.token_bytes(token_id), "bytes:")


def _spelt(data: bytes, prefix: str) -> str:
    """Return the text of a token; what is not text by itself as OpenAI writes it: `bytes:\\xf0\\x9f`."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return prefix + "".join(f"\\x{byte:02x}" for byte in data)


def _bounded(logprob: float) -> float:
    return max(logprob, _LEAST)
