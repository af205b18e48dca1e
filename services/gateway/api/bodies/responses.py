"""The body of `/v1/responses`, and the chat that it comes to."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from services.gateway.api.bodies.chat import ChatBody, Message
from services.gateway.api.bodies.fields import Positive, TextPart
from services.gateway.api.bodies.sampling import Sampling
from services.gateway.api.bodies.structured import JsonObject, ResponseFormat, SchemaFormat
from services.gateway.api.bodies.tools import (
    MAX_TOOLS,
    AllowedChoice,
    AllowedTools,
    CalledFunction,
    CalledTool,
    FunctionForm,
    NamedFunction,
    NamedTool,
    Tool,
    ToolChoice,
    ToolName,
    choice_kind,
)
from shared.errors import BadRequest
from shared.sampling.logprobs import MAX_LOGPROBS

LOGPROBS = "message.output_text.logprobs"
_IGNORED = ("reasoning.encrypted_content",)  # reasoning comes as it is
_MAX_ITEMS = 4096


class _Form(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", hide_input_in_errors=True)


class ItemText(_Form):
    type: Literal["input_text", "output_text", "text"]
    text: str


ItemContent = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[ItemText], Field(fail_fast=True), Tag("<parts>")],
    Discriminator(lambda value: "<text>" if isinstance(value, str) else "<parts>"),
]


class MessageItem(_Form):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: ItemContent


class CallItem(_Form):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class OutputItem(_Form):
    """What a call has returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: ItemContent


class ReasoningText(_Form):
    text: str


class ReasoningItem(_Form):
    type: Literal["reasoning"]
    content: list[ReasoningText] | None = None
    summary: list[ReasoningText] | None = None


def _item_kind(value: Any) -> str | None:
    kind = value.get("type", "message") if isinstance(value, dict) else getattr(value, "type", None)
    return f"<{kind}>" if kind in ("message", "function_call", "function_call_output", "reasoning") else None


Item = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[CallItem, Tag("<function_call>")]
    | Annotated[OutputItem, Tag("<function_call_output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")],
    Discriminator(
        _item_kind,
        custom_error_type="item_type",
        custom_error_message="must be a message, function_call, function_call_output or reasoning; "
        "this server keeps no items that could be referred to",
    ),
]
Input = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[Item], Field(min_length=1, max_length=_MAX_ITEMS, fail_fast=True), Tag("<items>")],
    Discriminator(lambda value: "<text>" if isinstance(value, str) else "<items>"),
]


class FunctionTool(_Form):
    type: Literal["function"]
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @property
    def tool(self) -> Tool:
        """The same as chat completions have it."""
        fields = self.model_dump(include={"name", "description", "parameters", "strict"}, exclude_none=True)
        return Tool(type="function", function=FunctionForm(**fields))


class NamedChoice(_Form):
    type: Literal["function"]
    name: str


class AllowedFunctions(_Form):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedChoice], Field(min_length=1, max_length=MAX_TOOLS)]


FunctionChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<word>")]
    | Annotated[NamedChoice, Tag("<named>")]
    | Annotated[AllowedFunctions, Tag("<allowed>")],
    Discriminator(choice_kind),
]


class TextFormat(_Form):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: JsonObject | None = Field(default=None, alias="schema")
    strict: bool | None = None

    def response_format(self) -> ResponseFormat | None:
        """Return the same as chat completions have it. Raises `BadRequest`."""
        if (self.schema_ is not None) != (self.type == "json_schema"):
            raise BadRequest("text: a schema goes with the type json_schema, and the type with it", param="text")
        if self.schema_ is None:
            return ResponseFormat(type=self.type)
        form = SchemaFormat(name=self.name, description=self.description, schema=self.schema_, strict=self.strict)
        return ResponseFormat(type="json_schema", json_schema=form)


class TextConfig(_Form):
    format: TextFormat | None = None
    verbosity: str | None = None


class ReasoningConfig(_Form):
    effort: str | None = None
    summary: str | None = None


class ResponsesBody(Sampling):
    """Beside these fields it takes what all bodies take to say how tokens are chosen, as extensions."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        **Sampling.neutral,
        "n": (1,),
        "background": (False,),
        "truncation": ("disabled",),
    }
    elsewhere: ClassVar[dict[str, str]] = {
        "previous_response_id": "this server keeps no responses: send the items of the conversation as input",
        "conversation": "this server keeps no conversations: send the items of the conversation as input",
        "prompt": "this server keeps no prompts: send instructions and input",
        "max_tokens": "use max_output_tokens in its place",
        "response_format": "use text.format in its place",
        "structured_outputs": "use text.format in its place",
        "return_token_ids": "a response has no place for them",
    }
    """Why fields are refused, whatever their value."""

    input: Input
    instructions: str | None = None
    max_output_tokens: Positive | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    include: list[str] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    store: bool | None = None  # taken, and answered by false
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    background: bool | None = None
    truncation: str | None = None
    max_tool_calls: int | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def num_chars(self) -> int:
        items = () if isinstance(self.input, str) else self.input
        num_chars = len(self.input) if isinstance(self.input, str) else sum(map(_num_chars, items))
        return num_chars + len(self.instructions or "") + sum(tool.tool.num_chars for tool in self.tools or ())

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if LOGPROBS in (self.include or ()) else None

    @property
    def constraint_field(self) -> str | None:
        has_format = self.text is not None and self.text.format is not None
        return "text" if has_format else super().constraint_field

    def check_supported(self) -> None:
        super().check_supported()
        for name, why in self.elsewhere.items():
            if getattr(self, name) is not None:
                raise BadRequest(f"{name} is not supported: {why}", param=name)
        for name in self.include or ():
            if name not in (LOGPROBS, *_IGNORED):
                raise BadRequest(f"include: {name[:64]!r} is not supported", param="include")
        if self.top_logprobs and self.num_logprobs is None:
            raise BadRequest(f"top_logprobs needs {LOGPROBS} in include", param="top_logprobs")

    def chat(self) -> ChatBody:
        """Return the chat whose answer is the response. Raises `BadRequest`."""
        names = self.model_fields_set & Sampling.model_fields.keys() - self.elsewhere.keys() - {"n"}
        shared = {name: getattr(self, name) for name in names}
        text_format = None if self.text is None or self.text.format is None else self.text.format.response_format()
        return ChatBody(
            **shared,
            messages=list(self._messages()),
            tools=None if self.tools is None else [tool.tool for tool in self.tools],
            tool_choice=self._tool_choice(),
            parallel_tool_calls=self.parallel_tool_calls,
            max_completion_tokens=self.max_output_tokens,
            response_format=text_format,
            logprobs=self.num_logprobs is not None,
            top_logprobs=self.num_logprobs,
            reasoning_effort=None if self.reasoning is None else self.reasoning.effort,
            chat_template_kwargs=self.chat_template_kwargs,
        )

    def _messages(self) -> Iterator[Message]:
        if self.instructions:
            yield Message(role="system", content=self.instructions)
        if isinstance(self.input, str):
            yield Message(role="user", content=self.input)
        else:
            yield from _messages_of(self.input)

    def _tool_choice(self) -> ToolChoice | None:
        choice = self.tool_choice
        if isinstance(choice, NamedChoice):
            return _named(choice)
        if isinstance(choice, AllowedFunctions):
            allowed = AllowedTools(mode=choice.mode, tools=[_named(tool) for tool in choice.tools])
            return AllowedChoice(type="allowed_tools", allowed_tools=allowed)
        return choice


def _named(choice: NamedChoice) -> NamedTool:
    return NamedTool(type="function", function=NamedFunction(name=choice.name))


def _messages_of(items: Sequence[Item]) -> Iterator[Message]:
    """Yield the messages that items come to: an answer's reasoning, text and calls are one message."""
    answer: Message | None = None
    for item in items:
        if isinstance(item, OutputItem) or (isinstance(item, MessageItem) and item.role != "assistant"):
            if answer is not None:
                yield answer
                answer = None
            yield _message(item)
            continue
        part = _part_of_answer(item)
        if answer is not None and _follows(answer, part):
            answer = _merged(answer, part)
        else:
            if answer is not None:
                yield answer
            answer = part
    if answer is not None:
        yield answer


def _message(item: OutputItem | MessageItem) -> Message:
    if isinstance(item, OutputItem):
        return Message(role="tool", tool_call_id=item.call_id, content=_content(item.output))
    return Message(role=item.role, content=_content(item.content))


def _part_of_answer(item: MessageItem | CallItem | ReasoningItem | OutputItem) -> Message:
    if isinstance(item, CallItem):
        function = CalledFunction(name=item.name, arguments=item.arguments)
        return Message(role="assistant", tool_calls=[CalledTool(id=item.call_id, function=function)])
    if isinstance(item, ReasoningItem):
        text = "".join(part.text for part in item.content or item.summary or ())
        return Message(role="assistant", reasoning=text)
    return _message(item)


def _follows(answer: Message, part: Message) -> bool:
    """Return whether a part goes on with an answer: reasoning begins one, and text does behind text or calls."""
    return part.reasoning is None and (part.content is None or (answer.content is None and not answer.tool_calls))


def _merged(answer: Message, part: Message) -> Message:
    calls = [*(answer.tool_calls or ()), *(part.tool_calls or ())]
    content = part.content if answer.content is None else answer.content
    return answer.model_copy(update={"content": content, "tool_calls": calls or None})


def _content(content: str | list[ItemText]) -> str | list[TextPart]:
    return content if isinstance(content, str) else [TextPart(type="text", text=part.text) for part in content]


def _num_chars(item: MessageItem | CallItem | ReasoningItem | OutputItem) -> int:
    return (_message(item) if isinstance(item, OutputItem) else _part_of_answer(item)).num_chars
