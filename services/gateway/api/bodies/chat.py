"""Conversations, and the body of `/v1/chat/completions`."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from services.gateway.api.bodies.body import Body
from services.gateway.api.bodies.fields import Content, Positive
from services.gateway.api.bodies.sampling import Sampling
from shared.errors import BadRequest
from shared.sampling.logprobs import MAX_LOGPROBS

TEMPLATE_CHARS = 32
"""About as many are a chat template's own for each message."""


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
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
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
