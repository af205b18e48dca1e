"""What a request has cost: the numbers of `usage`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens over all choices of a request."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(slots=True)
class PromptUsage:
    """What a prompt has cost so far, over all its choices; complete once they have ended."""

    num_prompt_tokens: int
    prefill_tokens: int = 0  # prompt tokens that prefill workers computed
    decode_tokens: int = 0  # prompt tokens that decode workers computed, however often

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens whose KV was not computed for this request."""
        return max(0, self.num_prompt_tokens - self.prefill_tokens - self.decode_tokens)
