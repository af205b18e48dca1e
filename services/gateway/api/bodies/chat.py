"""Conversations, and the body of `/v1/chat/completions`."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from services.gateway.api.bodies.body import Body
from services.gateway.api.bodies.fields import Content, Positive
from services.gateway.api.bodies.sampling import Sampling
from services.gateway.api.bodies.tools import CalledTool, ToolFields
from shared.errors import BadRequest
from shared.sampling.logprobs import MAX_LOGPROBS

TEMPLATE_CHARS = 32
"""About as many are a chat template's own for each message."""

OWN_VARIABLES = frozenset({"messages", "tools", "documents", "add_generation_prompt", "reasoning_effort"})
"""Of templates, that other fields than `chat_template_kwargs` set."""


class Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    tool_calls: list[CalledTool] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None  # an older name of the same

    def for_template(self) -> dict[str, Any]:
        """Return the message as chat templates expect it: parts joined by line ends, as vLLM does.

        Raises `BadRequest` for arguments of calls that are no JSON.
        """
        content = self.content
        text = content if isinstance(content, str) else "\n".join(part.text for part in content or ())
        message: dict[str, Any] = {"role": self.role, "content": text}
        message |= {key: value for key in ("name", "tool_call_id") if (value := getattr(self, key)) is not None}
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        reasoning = self.reasoning or self.reasoning_content
        return {**message, "reasoning": reasoning, "reasoning_content": reasoning} if reasoning else message

    @property
    def num_chars(self) -> int:
        content = self.content or ""
        num_chars = len(content) if isinstance(content, str) else sum(len(part.text) for part in content)
        num_chars += len(self.reasoning or self.reasoning_content or "")
        return num_chars + sum(call.num_chars for call in self.tool_calls or ()) + TEMPLATE_CHARS


class Conversation(Body):
    """A chat's messages, as `/v1/chat/completions` and `/tokenize` take them."""

    messages: Annotated[list[Message], Field(min_length=1)]
    add_generation_prompt: bool | None = None

    @property
    def num_chars(self) -> int:
        return sum(message.num_chars for message in self.messages)


class ChatBody(Sampling, ToolFields, Conversation):
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {**Sampling.neutral, "echo": (False,), "chat_template": ()}

    max_completion_tokens: Positive | None = None
    echo: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    functions: list[Any] | None = None
    function_call: Any = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[Any] | None = None
    reasoning_effort: str | None = None

    @property
    def num_chars(self) -> int:
        return super().num_chars + self.num_tool_chars

    def check_supported(self) -> None:
        super().check_supported()
        if self.top_logprobs and not self.logprobs:
            raise BadRequest("top_logprobs needs logprobs: true", param="top_logprobs")
        if self.functions:
            raise BadRequest("functions is not supported: use tools in its place", param="functions")
        if self.function_call not in (None, "none", "auto"):
            raise BadRequest("function_call is not supported: use tool_choice in its place", param="function_call")
        for name in self.chat_template_kwargs or ():
            if name in OWN_VARIABLES:
                raise BadRequest(f"chat_template_kwargs: {name} is a field by itself", param="chat_template_kwargs")
        self._check_continued()

    def _check_continued(self) -> None:
        if not self.continue_final_message:
            return
        if self.add_generation_prompt:
            raise BadRequest(
                "continue_final_message does not go with add_generation_prompt", param="continue_final_message"
            )
        last = self.messages[-1]
        if last.role != "assistant" or last.tool_calls or not last.for_template()["content"]:
            raise BadRequest(
                "continue_final_message: the last message must be the assistant's, and have content and no tool_calls",
                param="continue_final_message",
            )

    @property
    def template_variables(self) -> dict[str, Any]:
        """What the template is told beside messages and tools."""
        given = {"documents": self.documents or None, "reasoning_effort": self.reasoning_effort}
        told = {name: value for name, value in given.items() if value is not None}
        return {**(self.chat_template_kwargs or {}), **told}

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None
