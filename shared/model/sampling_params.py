"""How one request wants its tokens chosen. No torch: the gateway builds it, the decode engine obeys it."""

import math
from dataclasses import dataclass

from shared.errors import BadRequest

_MAX_SEED = 1 << 64


@dataclass(frozen=True)
class SamplingParams:
    """Validated at birth: raises `BadRequest` naming the field.

    `seed` is always set, so that a second worker can continue a request as the first would have: who accepts a request
    without one draws it.
    """

    max_tokens: int
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: all tokens
    seed: int = 0
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()  # end the generation; the model's own end-of-sequence ids are among them

    def __post_init__(self) -> None:
        _require(self.max_tokens >= 1, "max_tokens", "must be at least 1")
        _require(math.isfinite(self.temperature) and 0 <= self.temperature <= 100, "temperature", "must be 0 to 100")
        _require(0 < self.top_p <= 1, "top_p", "must be above 0 and at most 1")
        _require(self.top_k >= 0, "top_k", "must be at least 0")
        _require(0 <= self.seed < _MAX_SEED, "seed", "must be from 0 to 2^64 - 1")
        _require(0 <= self.min_tokens <= self.max_tokens, "min_tokens", "must be from 0 to max_tokens")
        _require(all(i >= 0 for i in self.stop_token_ids), "stop_token_ids", "must not be negative")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def _require(condition: bool, field: str, problem: str) -> None:
    if not condition:
        raise BadRequest(f"{field} {problem}", param=field)
