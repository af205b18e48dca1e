"""The request bodies of the OpenAI API, typed. What is not implemented is refused by name, never silently ignored."""

import secrets
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from services.gateway.api.fields import (
    MAX_INT,
    MAX_STOP_TOKENS,
    SEEDS,
    Content,
    KvFidelity,
    LogitBias,
    Natural,
    NonEmpty,
    Positive,
    Priority,
    Prompt,
    Seed,
    Stop,
    TokenIds,
)
from services.gateway.api.structured import ConstraintFields
from shared.errors import BadRequest
from shared.sampling.logprobs import MAX_LOGPROBS
from shared.sampling.params import SamplingParams

MAX_PREFIX_TTL_S = 30 * 86400
TEMPLATE_CHARS = 32
"""About as many are a chat template's own for each message."""


class Body(BaseModel):
    """Base of all bodies: JSON types as they are, no coercion; fields that nobody knows are kept and logged once."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, hide_input_in_errors=True)

    model: str | None = None

    @property
    def num_chars(self) -> int:
        """Characters that are to be tokenised."""
        return 0


class StreamOptions(Body):
    include_usage: bool | None = None


class Sampling(ConstraintFields, Body):
    """What completions and chat completions share. An explicit null means the default, as in OpenAI's clients."""

    # Values that change nothing; any other value of these fields is refused.
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "best_of": (1,),
        "prompt_logprobs": (),
        "use_beam_search": (False,),
        "truncate_prompt_tokens": (),
        "allowed_token_ids": (),
        "bad_words": ([],),
        "guided_whitespace_pattern": (),
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
    priority: Priority | None = None
    kv_fidelity: KvFidelity | None = None
    user: str | None = None

    best_of: Positive | None = None
    prompt_logprobs: int | None = None
    use_beam_search: bool | None = None
    truncate_prompt_tokens: int | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    guided_whitespace_pattern: str | None = None

    def check_supported(self) -> None:
        """Raise `BadRequest` naming the first field that asks for something which is not implemented."""
        for name, neutral in self.neutral.items():
            value = getattr(self, name)
            if value is not None and not any(value == allowed for allowed in neutral):
                raise BadRequest(f"{name} is not supported by this server yet; leave it out", param=name)
        if self.stream_options is not None and not self.stream:
            raise BadRequest("stream_options is only allowed with stream: true", param="stream_options")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def num_logprobs(self) -> int | None:
        """How many alternatives to each token are asked for; None when no log-probabilities are."""
        return None

    def sampling_params(self, max_tokens: int, vocab_size: int, eos_ids: tuple[int, ...] = ()) -> SamplingParams:
        """Return what decode is told. A seed is drawn where there is none, so that any worker can continue.
        `eos_ids` stop like the caller's own ids, unless they are to be ignored: decode knows no other ends.

        Raises `BadRequest` naming the field.
        """
        params = SamplingParams(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=min(max(self.top_k or 0, 0), vocab_size),
            min_p=self.min_p or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            logit_bias=self._biases(),
            seed=secrets.randbits(64) if self.seed is None else self.seed % SEEDS,
            min_tokens=self.min_tokens or 0,
            stop_token_ids=(*(self.stop_token_ids or ()), *(() if self.ignore_eos else eos_ids)),
            num_logprobs=self.num_logprobs,
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


class CompletionBody(Sampling):
    neutral = {**Sampling.neutral, "suffix": ("",)}

    prompt: Prompt
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    suffix: str | None = None

    def check_supported(self) -> None:
        super().check_supported()
        if self.echo and self.logprobs is not None:
            raise BadRequest(
                "echo does not go with logprobs: a prompt has none, for its KV may be cached", param="echo"
            )

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def num_chars(self) -> int:
        if isinstance(self.prompt, str):
            return len(self.prompt)
        if not self.prompt or not isinstance(self.prompt[0], str):  # all are of one type
            return 0
        return sum(len(text) for text in self.prompt if isinstance(text, str))


class Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None

    def for_template(self) -> dict[str, str]:
        """Return the message as chat templates expect it: parts joined by line ends, as vLLM does."""
        content = self.content
        text = content if isinstance(content, str) else "\n".join(part.text for part in content or ())
        named = {} if self.name is None else {"name": self.name}
        return {"role": self.role, "content": text, **named}

    @property
    def num_chars(self) -> int:
        content = self.content or ""
        num_chars = len(content) if isinstance(content, str) else sum(len(part.text) for part in content)
        return num_chars + TEMPLATE_CHARS


class Conversation(Body):
    """A chat's messages, as `/v1/chat/completions` and `/tokenize` take them."""

    messages: Annotated[list[Message], Field(min_length=1)]
    add_generation_prompt: bool | None = None

    @property
    def num_chars(self) -> int:
        return sum(message.num_chars for message in self.messages)


class ChatBody(Sampling, Conversation):
    neutral = {
        **Sampling.neutral,
        "echo": (False,),
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "continue_final_message": (False,),
        "chat_template": (),
        "chat_template_kwargs": ({},),
        "documents": ([],),
    }

    max_completion_tokens: Positive | None = None
    echo: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    function_call: Any = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[Any] | None = None

    def check_supported(self) -> None:
        super().check_supported()
        if self.top_logprobs and not self.logprobs:
            raise BadRequest("top_logprobs needs logprobs: true", param="top_logprobs")

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class PromptOrMessages(Body):
    """One of both."""

    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None

    @property
    def num_chars(self) -> int:
        return len(self.prompt or "") + sum(message.num_chars for message in self.messages or ())


class PrefixBody(PromptOrMessages):
    """A prompt's beginning that is to be kept."""

    ttl_s: Annotated[int, Field(ge=1, le=MAX_PREFIX_TTL_S)] = 3600
    name: Annotated[str, Field(max_length=256)] | None = None
    cache_salt: NonEmpty | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None


class TokenizeBody(PromptOrMessages):
    """As vLLM's endpoint takes it."""

    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(Body):
    tokens: TokenIds
