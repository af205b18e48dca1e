"""Bodies of endpoints that take a text and generate nothing: the tokeniser's, and prefixes that are kept."""

from typing import Annotated

from pydantic import Field

from services.gateway.api.bodies.body import Body
from services.gateway.api.bodies.chat import Message
from services.gateway.api.bodies.fields import NonEmpty, TokenIds

MAX_PREFIX_TTL_S = 30 * 86400


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
    cache_group: NonEmpty | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None


class TokenizeBody(PromptOrMessages):
    """As vLLM's endpoint takes it."""

    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(Body):
    tokens: TokenIds
