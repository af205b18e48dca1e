"""The formats of tool calls: how they are read, and how the compiler of grammars is told of them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from services.gateway.syntax.calls import ToolSchemas
from services.gateway.syntax.hermes import CLOSE, OPEN, HermesReader
from services.gateway.syntax.llama import TAG, LlamaReader
from services.gateway.syntax.parts import AnswerReader
from services.gateway.syntax.qwen import QwenReader


class MakeReader(Protocol):
    def __call__(self, schemas: ToolSchemas, max_calls: int | None = None, /) -> AnswerReader: ...


@dataclass(frozen=True)
class CallSyntax:
    """How calls that a grammar forces are written: always JSON, which keeps every schema.

    An object is between `begin` and `end`, which are markers and text.
    """

    begin: tuple[str, ...]
    end: tuple[str, ...]
    arguments_key: str
    separator: str
    trigger: str  # what begins a call in free text; empty: a call is at the answer's beginning or nowhere

    def head(self, name: str) -> tuple[str, ...]:
        """Return the text of an object before its arguments, in pieces that JSON has too: the compiler does not go
        back to the middle of one, where an object of another kind may stand as well."""
        key = json.dumps(self.arguments_key)
        return ("{", '"name"', ":", " ", json.dumps(name, ensure_ascii=False), ",", " ", key, ":", " ")


_HERMES: Final = CallSyntax((OPEN, "\n"), ("\n", CLOSE), "arguments", "\n", OPEN)
_LLAMA: Final = CallSyntax((), (), "parameters", "; ", "")


@dataclass(frozen=True)
class ToolFormat:
    name: str
    reader: MakeReader
    markers: tuple[str, ...]  # that may be special tokens, which clients do not see
    forced: CallSyntax  # where a grammar forces calls
    forced_reader: MakeReader


_FORMATS: Final = (
    ToolFormat("hermes", HermesReader, (OPEN, CLOSE), _HERMES, HermesReader),
    ToolFormat("llama", LlamaReader, (TAG,), _LLAMA, LlamaReader),
    ToolFormat("qwen", QwenReader, (OPEN, CLOSE), _HERMES, HermesReader),
)
FORMATS: Final[Mapping[str, ToolFormat]] = {each.name: each for each in _FORMATS}
"""All formats by their names, which are values of `PRFAAS_TOOL_PARSER`."""

_SIGNS: Final = (("<function=", "qwen"), (OPEN, "hermes"), (TAG, "llama"), ('"parameters": dictionary', "llama"))
"""Texts of chat templates, the most telling first."""


def format_in(template: str) -> ToolFormat | None:
    """Return the format that a chat template teaches its model."""
    return next((FORMATS[name] for sign, name in _SIGNS if sign in template), None)


MarkerId = Callable[[str], int | None]
"""Returns the id of a marker that is one token of the vocabulary, None if it is text like any other."""
