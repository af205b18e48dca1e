"""What bodies that ask for an answer have in common: how tokens are to be chosen, and how they are shown."""

import secrets
from typing import Annotated, Any, ClassVar

from pydantic import Field

from services.gateway.api.bodies.body import Body
from services.gateway.api.bodies.fields import (
    MAX_INT,
    MAX_STOP_TOKENS,
    SEEDS,
    KvFidelity,
    LogitBias,
    Natural,
    NonEmpty,
    Positive,
    Priority,
    Seed,
    Stop,
    Truncation,
)
from services.gateway.api.bodies.structured import ConstraintFields
from services.gateway.defaults import NO_DEFAULTS, GenerationDefaults
from shared.errors import BadRequest
from shared.sampling.logprobs import MAX_LOGPROBS, PromptScoring
from shared.sampling.params import SamplingParams


class StreamOptions(Body):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Sampling(ConstraintFields, Body):
    """What completions and chat completions share. An explicit null means the default, as in OpenAI's clients."""

    # Values that change nothing; any other value of these fields is refused.
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "best_of": (1,),
        "allowed_token_ids": (),
        "bad_words": ([],),
    }

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    max_tokens: Positive | None = None
    min_tokens: Natural | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=MAX_INT)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    logit_bias: LogitBias | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    stop_token_ids: Annotated[list[Natural], Field(max_length=MAX_STOP_TOKENS, fail_fast=True)] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    cache_salt: NonEmpty | None = None
    cache_group: NonEmpty | None = None
    priority: Priority | None = None
    kv_fidelity: KvFidelity | None = None
    user: str | None = None
    truncate_prompt_tokens: Truncation | None = None

    best_of: Positive | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None

    def check_supported(self) -> None:
        """Raise `BadRequest` naming the first field that asks for something which is not implemented."""
        for name, neutral in self.neutral.items():
            value = getattr(self, name)
            if value is not None and not any(value == allowed for allowed in neutral):
                raise BadRequest(f"{name} is not supported by this server yet; leave it out", param=name)
        if self.stream_options is not None and not self.stream:
            raise BadRequest("stream_options is only allowed with stream: true", param="stream_options")
        if self.prompt_logprobs is not None and self.stream:
            raise BadRequest("prompt_logprobs does not go with stream: true", param="prompt_logprobs")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """Whether every chunk tells the usage so far, as vLLM's do."""
        options = self.stream_options
        return options is not None and bool(options.include_usage and options.continuous_usage_stats)

    @property
    def num_logprobs(self) -> int | None:
        """How many alternatives to each token are asked for; None when no log-probabilities are."""
        return None

    @property
    def tells_prompt(self) -> bool:
        """Whether the answer's log-probabilities begin with the prompt's."""
        return False

    @property
    def chooses_best(self) -> bool:
        """Whether more choices are generated than shown: the likeliest are."""
        return False

    @property
    def num_choices(self) -> int:
        """How many choices of each prompt are generated."""
        return self.n or 1

    @property
    def scoring(self) -> PromptScoring | None:
        """What is to be told of the prompt's own tokens."""
        return None if self.prompt_logprobs is None else PromptScoring(1, self.prompt_logprobs)

    def sampling_params(
        self,
        max_tokens: int,
        vocab_size: int,
        eos_ids: tuple[int, ...] = (),
        defaults: GenerationDefaults = NO_DEFAULTS,
    ) -> SamplingParams:
        """Return what decode is told. A seed is drawn where there is none, so that any worker can continue.
        `eos_ids` stop like the caller's own ids, unless they are to be ignored: decode knows no other ends.

        Raises `BadRequest` naming the field.
        """
        params = SamplingParams(
            max_tokens=max_tokens,
            temperature=defaults.temperature if self.temperature is None else self.temperature,
            top_p=defaults.top_p if self.top_p is None else self.top_p,
            top_k=min(max(defaults.top_k if self.top_k is None else self.top_k, 0), vocab_size),
            min_p=defaults.min_p if self.min_p is None else self.min_p,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=self.repetition_penalty or defaults.repetition_penalty,
            logit_bias=self._biases(),
            seed=secrets.randbits(64) if self.seed is None else self.seed % SEEDS,
            min_tokens=self.min_tokens or 0,
            stop_token_ids=(*(self.stop_token_ids or ()), *(() if self.ignore_eos else eos_ids)),
            num_logprobs=0 if self.num_logprobs is None and self.chooses_best else self.num_logprobs,
            constraint=self.constraint(),
        )
        params.check_ids(vocab_size)
        return params

    def _biases(self) -> tuple[tuple[int, float], ...]:
        """Return `logit_bias` with its keys read as numbers, each once."""
        biases = {}
        for key, bias in (self.logit_bias or {}).items():
            if not (key.isascii() and key.isdigit() and len(key) <= 10):
                raise BadRequest(f"logit_bias: {key[:64]!r} is not a token id", param="logit_bias")
            biases[int(key)] = bias
        return tuple(sorted(biases.items()))
