"""What answers look like, as types: for the description only. Tests hold real answers against them."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Answer(BaseModel):
    model_config = ConfigDict(extra="allow")  # answers grow


class ErrorDetail(_Answer):
    message: str
    type: Literal[
        "invalid_request_error", "authentication_error", "permission_error", "rate_limit_error", "server_error"
    ]
    param: str | None = Field(description="The field of the body, the header or the parameter that is wrong.")
    code: str = Field(description="For programs: one code for each kind of error.")


class ErrorAnswer(_Answer):
    """Every error, whatever went wrong. In a stream that has begun, it is an event, and no [DONE] follows."""

    error: ErrorDetail


class CachedTokenCounts(_Answer):
    cached_tokens: int = Field(description="Tokens of the prompt whose KV nobody had to compute.")


class UsageAnswer(_Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokenCounts | None = None


FinishedBy = Literal["stop", "length"]


class CompletionLogprobs(_Answer):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(_Answer):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishedBy | None
    token_ids: list[int] | None = Field(default=None, description="With `return_token_ids`.")


class CompletionAnswer(_Answer):
    """A completion. Chunks of a stream look the same."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageAnswer | None = None


class TokenAlternative(_Answer):
    token: str
    logprob: float
    bytes: list[int]


class TokenLikelihood(TokenAlternative):
    top_logprobs: list[TokenAlternative]


class ChatLogprobs(_Answer):
    content: list[TokenLikelihood]


class AnsweredMessage(_Answer):
    role: Literal["assistant"]
    content: str | None


class ChatChoice(_Answer):
    index: int
    message: AnsweredMessage
    logprobs: ChatLogprobs | None
    finish_reason: str
    token_ids: list[int] | None = Field(default=None, description="With `return_token_ids`.")


class ChatCompletionAnswer(_Answer):
    """A chat completion."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageAnswer


class MessageDelta(_Answer):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatDelta(_Answer):
    index: int
    delta: MessageDelta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    token_ids: list[int] | None = None


class ChatChunk(_Answer):
    """An event of a streamed chat completion."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatDelta]
    usage: UsageAnswer | None = None


class ModelAnswer(_Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int = Field(description="Tokens of prompt and completion together.")


class ModelsAnswer(_Answer):
    object: Literal["list"]
    data: list[ModelAnswer]


class HealthAnswer(_Answer):
    status: Literal["ok", "unavailable"]
    reasons: list[str]
    workers: dict[str, list[str]]
    problems: list[Any]


class VersionAnswer(_Answer):
    version: str


class TokenizeAnswer(_Answer):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeAnswer(_Answer):
    prompt: str


class PrefixAnswer(_Answer):
    id: str
    object: Literal["prefix"]
    name: str | None
    created: int
    expires_at: int
    num_tokens: int
    kept_tokens: int = Field(description="Of these, in full blocks.")
    cached_tokens: int | None = Field(default=None, description="Of these, what nobody had to compute just now.")


class PrefixesAnswer(_Answer):
    object: Literal["list"]
    data: list[PrefixAnswer]


class DroppedPrefixAnswer(_Answer):
    id: str
    object: Literal["prefix"]
    deleted: bool


class RequestsAnswer(_Answer):
    object: Literal["list"]
    data: list[dict[str, Any]] = Field(description="The latest first.")
    num_taken: int = Field(description="Requests since this gateway's start.")


class LivezAnswer(_Answer):
    alive: bool


class ReadyzAnswer(_Answer):
    ready: bool
    draining: bool
    conditions: dict[str, dict[str, Any]]
