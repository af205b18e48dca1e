"""How one request wants its tokens chosen. No torch: the gateway builds it, the decode engine obeys it."""

import math
import struct
from dataclasses import dataclass, replace
from hashlib import blake2b

from shared.errors import BadRequest
from shared.sampling.constraint import Constraint
from shared.sampling.logprobs import MAX_LOGPROBS

_MAX_SEED = 1 << 64


@dataclass(frozen=True)
class SamplingParams:
    """Validated at birth: raises `BadRequest` naming the field.

    `seed` is always set, so that a second worker can continue a request as the first would have: who accepts a request
    without one draws it. The parameters act in this order, which is vLLM's: `constraint`, `min_tokens` and
    `logit_bias`, repetition, frequency and presence penalties, temperature, min-p, top-k, top-p.
    """

    max_tokens: int  # still to be generated, like `min_tokens`: a continuation asks for what is left; 0: none at all
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: all tokens
    min_p: float = 0.0  # of the likeliest token's probability
    presence_penalty: float = 0.0  # once, for each token that was generated before
    frequency_penalty: float = 0.0  # for each time it was
    repetition_penalty: float = 1.0  # divides positive and multiplies other logits of tokens of prompt and answer
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, what is added to its logit), each id once
    seed: int = 0
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()  # end the generation; the model's own end-of-sequence ids are among them
    num_logprobs: int | None = None  # None: nothing is told; 0: the chosen token's only
    constraint: Constraint | None = None  # what the whole answer has to be, also where a part of it is generated

    def __post_init__(self) -> None:
        _require(self.max_tokens >= 0, "max_tokens", "must be at least 0")
        _require(math.isfinite(self.temperature) and 0 <= self.temperature <= 100, "temperature", "must be 0 to 100")
        _require(0 < self.top_p <= 1, "top_p", "must be above 0 and at most 1")
        _require(self.top_k >= 0, "top_k", "must be at least 0")
        _require(0 <= self.min_p <= 1, "min_p", "must be from 0 to 1")
        _require(-2 <= self.presence_penalty <= 2, "presence_penalty", "must be from -2 to 2")
        _require(-2 <= self.frequency_penalty <= 2, "frequency_penalty", "must be from -2 to 2")
        _require(0.01 <= self.repetition_penalty <= 100, "repetition_penalty", "must be from 0.01 to 100")
        _require(all(i >= 0 and -100 <= b <= 100 for i, b in self.logit_bias), "logit_bias", "must be from -100 to 100")
        _require(0 <= self.seed < _MAX_SEED, "seed", "must be from 0 to 2^64 - 1")
        _require(0 <= self.min_tokens <= self.max_tokens, "min_tokens", "must be from 0 to max_tokens")
        _require(all(i >= 0 for i in self.stop_token_ids), "stop_token_ids", "must not be negative")
        _require(0 <= (self.num_logprobs or 0) <= MAX_LOGPROBS, "logprobs", f"must be from 0 to {MAX_LOGPROBS}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def has_penalties(self) -> bool:
        return bool(self.presence_penalty or self.frequency_penalty) or self.repetition_penalty != 1

    @property
    def is_plain(self) -> bool:
        """Whether the token with the greatest logit is taken, and nobody asks for more, once `min_tokens` are out."""
        return (
            self.greedy
            and not self.has_penalties
            and not self.logit_bias
            and self.num_logprobs is None
            and self.constraint is None
        )

    def check_ids(self, vocab_size: int) -> None:
        """Raise `BadRequest` naming the field that speaks of a token which the model does not have."""
        _require(all(i < vocab_size for i in self.stop_token_ids), "stop_token_ids", f"must be below {vocab_size}")
        _require(all(i < vocab_size for i, _ in self.logit_bias), "logit_bias", f"must name ids below {vocab_size}")

    def for_choice(self, index: int) -> "SamplingParams":
        """Return what choice `index` of several of one prompt is sampled with: `choice_seed` says how they differ."""
        return replace(self, seed=choice_seed(self.seed, index)) if index else self


def choice_seed(seed: int, index: int) -> int:
    """Return the seed of choice `index`: the request's own for the first, so that more choices do not change it, and
    for the others 64 bits of a hash of both, so that neighbouring seeds have no choice in common."""
    return _hashed(seed, index, b"choice") if index else seed


def uniform(seed: int, position: int) -> float:
    """Return a number in [0, 1) that (seed, position) fixes: a counter-based generator.

    BLAKE2b stands in for Philox (Salmon et al., 2011): as good, and much faster for one number from Python.
    """
    return (_hashed(seed, position, b"draw") >> 11) * 2.0**-53


def _hashed(seed: int, counter: int, purpose: bytes) -> int:
    digest = blake2b(struct.pack("<QQ", seed, counter), digest_size=8, person=purpose).digest()
    return int.from_bytes(digest, "little")


def _require(condition: bool, field: str, problem: str) -> None:
    if not condition:
        raise BadRequest(f"{field} {problem}", param=field)
