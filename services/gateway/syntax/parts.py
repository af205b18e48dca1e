"""What an answer consists of, as clients are told it: content, reasoning, calls of tools."""

from typing import NamedTuple, Protocol


class ContentPart(NamedTuple):
    text: str


class ReasoningPart(NamedTuple):
    text: str


class CallBegun(NamedTuple):
    """A call whose arguments follow."""

    index: int  # of the call in its answer
    name: str


class CallArguments(NamedTuple):
    """More of the text of a call's arguments, a JSON object."""

    index: int
    text: str


AnswerPart = ContentPart | ReasoningPart | CallBegun | CallArguments


class AnswerReader(Protocol):
    """Reads one answer, whose text comes in pieces. However it is cut, the parts say the same when they are joined."""

    def push(self, text: str) -> list[AnswerPart]:
        """Take more text; return the parts that are certain by now."""
        ...

    def finish(self) -> list[AnswerPart]:
        """Return what was held back: no more text comes."""
        ...


def joined(parts: list[AnswerPart]) -> list[AnswerPart]:
    """Return the same parts with neighbours of one kind put together."""
    found: list[AnswerPart] = []
    for part in parts:
        last = found[-1] if found else None
        if isinstance(part, ContentPart) and isinstance(last, ContentPart):
            found[-1] = ContentPart(last.text + part.text)
        elif isinstance(part, ReasoningPart) and isinstance(last, ReasoningPart):
            found[-1] = ReasoningPart(last.text + part.text)
        elif isinstance(part, CallArguments) and isinstance(last, CallArguments) and part.index == last.index:
            found[-1] = CallArguments(part.index, last.text + part.text)
        else:
            found.append(part)
    return found
