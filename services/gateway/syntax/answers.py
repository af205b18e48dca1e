"""How the served model writes its answers, and the reader of one answer."""

from dataclasses import dataclass
from typing import Final

from services.gateway.syntax.calls import ToolSchemas
from services.gateway.syntax.formats import FORMATS, ToolFormat, format_in
from services.gateway.syntax.parts import AnswerPart, AnswerReader, ContentPart
from services.gateway.syntax.reasoning import END_THINK, THINK, ReasoningReader


@dataclass(frozen=True)
class AnswerSyntax:
    """What a model's chat template, or a setting, says of its answers."""

    tools: ToolFormat | None  # None: no calls are read, and no tools taken
    has_reasoning: bool
    template_knows_tools: bool  # in that format; otherwise they are told in ordinary messages

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that are read even if they are special tokens, which are no text otherwise."""
        tools = () if self.tools is None else self.tools.markers
        return (*tools, THINK, END_THINK) if self.has_reasoning else tools


PLAIN: Final = AnswerSyntax(None, has_reasoning=False, template_knows_tools=False)
"""Of answers that are content and nothing else."""


def syntax_of(template: str, *, takes_tools: bool, tool_parser: str, reasoning_parser: str) -> AnswerSyntax:
    """Return how a model writes by its chat template's text, as far as the parsers are `auto`.

    A template that takes no tools, or teaches a format that is not known, is not told of tools: the model learns of
    them, and of Hermes' format, from the messages.
    """
    taught = format_in(template) if takes_tools else None
    if tool_parser == "none":
        tools = None
    else:
        tools = (taught or FORMATS["hermes"]) if tool_parser == "auto" else FORMATS[tool_parser]
    is_taught = takes_tools and (taught is not None or tool_parser != "auto")
    has_reasoning = END_THINK in template if reasoning_parser == "auto" else reasoning_parser == "think"
    return AnswerSyntax(tools, has_reasoning, is_taught)


@dataclass(frozen=True)
class AnswerReading:
    """How the answers of one request are read."""

    schemas: ToolSchemas | None = None  # of the tools that may be called; None: no calls are read
    max_calls: int | None = None
    is_forced: bool = False  # a grammar forces the form of calls
    has_reasoning: bool = False
    is_opened: bool = False  # the prompt ends inside the reasoning
    hidden: tuple[str, ...] = ()  # markers that are special tokens: no content


def reader_of(syntax: AnswerSyntax, reading: AnswerReading) -> AnswerReader:
    """Return a reader for one answer."""
    reader: AnswerReader = _ContentReader()
    if syntax.tools is not None and reading.schemas is not None:
        make = syntax.tools.forced_reader if reading.is_forced else syntax.tools.reader
        reader = make(reading.schemas, reading.max_calls)
    if reading.has_reasoning:
        reader = ReasoningReader(reader, is_opened=reading.is_opened)
    return _HidingReader(reader, reading.hidden) if reading.hidden else reader


class _ContentReader:
    """Takes everything for content."""

    def push(self, text: str) -> list[AnswerPart]:
        return [ContentPart(text)] if text else []

    def finish(self) -> list[AnswerPart]:
        return []


class _HidingReader:
    """Leaves special tokens out of content: what came of one of them comes in one piece."""

    def __init__(self, reader: AnswerReader, hidden: tuple[str, ...]) -> None:
        self._reader = reader
        self._hidden = hidden

    def push(self, text: str) -> list[AnswerPart]:
        return self._shown(self._reader.push(text))

    def finish(self) -> list[AnswerPart]:
        return self._shown(self._reader.finish())

    def _shown(self, parts: list[AnswerPart]) -> list[AnswerPart]:
        return [shown for part in parts if (shown := self._without(part)) is not None]

    def _without(self, part: AnswerPart) -> AnswerPart | None:
        if not isinstance(part, ContentPart):
            return part
        text = part.text
        for marker in self._hidden:
            text = text.replace(marker, "")
        return ContentPart(text) if text else None
