"""Tools of a request and calls of earlier answers, as OpenAI's chat completions have them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag

from shared.errors import BadRequest

MAX_TOOLS = 128

ToolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}


class _Form(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", hide_input_in_errors=True)


class FunctionForm(_Form):
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        """The JSON schema of the arguments, which are an object. Raises `BadRequest`."""
        if self.parameters is None:
            return _NO_PARAMETERS
        if self.parameters.get("type", "object") != "object":
            raise BadRequest(f"tools: the parameters of {self.name} must be of type object", param="tools")
        return {"type": "object", **self.parameters}


class Tool(_Form):
    type: Literal["function"]
    function: FunctionForm

    def for_template(self) -> dict[str, Any]:
        """Return the tool as chat templates expect it: as it came."""
        return self.model_dump(exclude_unset=True)

    @property
    def num_chars(self) -> int:
        return len(json.dumps(self.function.parameters)) + len(self.function.description or "") + 128


class NamedFunction(_Form):
    name: str


class NamedTool(_Form):
    type: Literal["function"]
    function: NamedFunction


class AllowedTools(_Form):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedChoice(_Form):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def choice_kind(value: Any) -> str:
    """Return the branch of a `tool_choice`: a word, one tool, or those that are allowed."""
    kind = value.get("type", "") if isinstance(value, dict) else getattr(value, "type", None)
    return "<word>" if kind is None else "<allowed>" if kind == "allowed_tools" else "<named>"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<word>")]
    | Annotated[NamedTool, Tag("<named>")]
    | Annotated[AllowedChoice, Tag("<allowed>")],
    Discriminator(choice_kind),
]


class CalledFunction(_Form):
    name: str
    arguments: str | dict[str, Any]


class CalledTool(_Form):
    """A call of an earlier answer."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction

    def for_template(self) -> dict[str, Any]:
        """Return the call as chat templates expect it: the arguments as an object. Raises `BadRequest`."""
        arguments: Any = self.function.arguments
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except (ValueError, RecursionError):
                arguments = None
        if not isinstance(arguments, dict):
            raise BadRequest(
                f"messages: the arguments of a call of {self.function.name} are no JSON object", param="messages"
            )
        return {"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": arguments}}

    @property
    def num_chars(self) -> int:
        arguments = self.function.arguments
        return len(arguments if isinstance(arguments, str) else json.dumps(arguments)) + len(self.function.name)


@dataclass(frozen=True)
class ToolUse:
    """What an answer may do with tools."""

    offered: tuple[Tool, ...] = ()  # that the model is told of
    callable: tuple[Tool, ...] = ()
    is_required: bool = False
    is_parallel: bool = True

    @property
    def is_strict(self) -> bool:
        """Whether arguments have to keep a schema where calls are left to the model."""
        return any(tool.function.strict for tool in self.callable)

    @property
    def schemas(self) -> Mapping[str, Mapping[str, Any]]:
        """The schema of the arguments of each tool that may be called. Raises `BadRequest`."""
        return {tool.function.name: tool.function.schema_of_arguments for tool in self.callable}


class ToolFields(BaseModel):
    """These fields of a request body."""

    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    @property
    def num_tool_chars(self) -> int:
        return sum(tool.num_chars for tool in self.tools or ())

    def tool_use(self) -> ToolUse:
        """Return what these fields come to. A model that may call nothing is told of no tools.

        Raises `BadRequest` naming the field.
        """
        tools, choice = tuple(self.tools or ()), self.tool_choice
        names = [tool.function.name for tool in tools]
        if len(set(names)) != len(names):
            raise BadRequest("tools: each function needs a name of its own", param="tools")
        if choice in (None, "none", "auto") and (not tools or choice == "none"):
            return ToolUse()
        if not tools:
            raise BadRequest("tool_choice: there are no tools to choose from", param="tool_choice")
        is_parallel = self.parallel_tool_calls is not False
        if isinstance(choice, NamedTool):
            return ToolUse(tools, (_found(tools, choice.function.name),), is_required=True, is_parallel=False)
        if isinstance(choice, AllowedChoice):
            allowed = {tool.function.name: None for tool in choice.allowed_tools.tools}
            callable_ones = tuple(_found(tools, name) for name in allowed)
            return ToolUse(tools, callable_ones, choice.allowed_tools.mode == "required", is_parallel)
        return ToolUse(tools, tools, choice == "required", is_parallel)


def _found(tools: tuple[Tool, ...], name: str) -> Tool:
    for tool in tools:
        if tool.function.name == name:
            return tool
    raise BadRequest(f"tool_choice: there is no tool {name[:64]!r}", param="tool_choice")
