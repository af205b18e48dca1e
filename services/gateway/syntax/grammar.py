"""Grammars of answers with calls, in llguidance's dialect of Lark: what they let through, the format's reader reads."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from services.gateway.syntax.formats import CallSyntax, MarkerId
from services.gateway.syntax.reasoning import END_THINK, THINK

MAX_FORCED_CALLS = 16
"""Of an answer that has to consist of calls: models of little judgement would go on for ever."""

_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,32}"
_ANY = "/(?s:.*)/"


@dataclass(frozen=True)
class CallRules:
    """What an answer may be. `schemas` are those of the parameters of the tools that may be called. Where there are
    none, `answer_schema` is set."""

    schemas: Mapping[str, Mapping[str, Any]]
    is_required: bool  # nothing but calls
    is_parallel: bool  # more than one call
    has_reasoning: bool = False  # the model may reason first
    is_opened: bool = False  # the prompt ends inside the reasoning
    answer_schema: Mapping[str, Any] | None = None  # of an answer without calls


def grammar_of(syntax: CallSyntax, rules: CallRules, marker_id: MarkerId) -> str:
    """Return the grammar's text. Markers that are one token of the vocabulary are named by their ids: the compiler
    does not take text for them."""
    return "\n".join(_Grammar(syntax, rules, marker_id).lines())


class _Grammar:
    def __init__(self, syntax: CallSyntax, rules: CallRules, marker_id: MarkerId) -> None:
        self._syntax = syntax
        self._rules = rules
        self._marker_id = marker_id

    def lines(self) -> Iterator[str]:
        yield "%llguidance {}"
        reasoning = "" if not self._rules.has_reasoning else "reasoning " if self._rules.is_opened else "reasoning? "
        yield f"start: {reasoning}answer"
        yield from self._reasoning()
        yield from self._answer()
        if self._rules.schemas:
            yield from self._calls()

    def _calls(self) -> Iterator[str]:
        number = f"{{0,{MAX_FORCED_CALLS - 1}}}" if self._rules.is_required else "*"
        more = f" ({json.dumps(self._syntax.separator)} call){number}" if self._rules.is_parallel else ""
        yield f"calls: call{more}"
        begin, end = self._spelt(self._syntax.begin), self._spelt(self._syntax.end)
        yield f"call: {begin} body {end}"
        yield from self._bodies()

    def _bodies(self) -> Iterator[str]:
        yield f"body: {' | '.join(f'body_{i}' for i in range(len(self._rules.schemas)))}"
        for i, (name, schema) in enumerate(self._rules.schemas.items()):
            head = " ".join(map(json.dumps, self._syntax.head(name)))
            yield f'body_{i}: {head} arguments_{i} "}}"'
            yield f"arguments_{i}: %json {_schema(schema)}"

    def _answer(self) -> Iterator[str]:
        """Yield the rules of what is not reasoning."""
        if self._rules.is_required:
            yield "answer: calls"
        elif self._rules.answer_schema is not None:
            yield "answer: calls | other" if self._rules.schemas else "answer: other"
            yield f"other: %json {_schema(self._rules.answer_schema)}"
        elif not self._syntax.trigger:
            yield r"answer: calls | OTHER | "
            yield r"OTHER: /[^{\s](?s:.*)/"
        else:
            yield from self._triggered()

    def _triggered(self) -> Iterator[str]:
        """Yield the rules of calls in free text."""
        after = [part for part in self._syntax.begin if part != self._syntax.trigger]
        rest, number = f"{self._spelt(after)} body {self._spelt(self._syntax.end)}", self._number
        yield f"ANY: {_ANY}"
        if (token := self._marker_id(self._syntax.trigger)) is not None:
            yield f"answer: (ANY <[{token}]> {rest}){number} ANY"
        else:
            yield f"answer: (before {rest}){number} ANY"
            yield f"before[suffix={json.dumps(self._syntax.trigger)}]: {_ANY}"

    @property
    def _number(self) -> str:
        return "*" if self._rules.is_parallel else "?"

    def _reasoning(self) -> Iterator[str]:
        if not self._rules.has_reasoning:
            return
        begin = "" if self._rules.is_opened else self._spelt((THINK,))
        if (token := self._marker_id(END_THINK)) is not None:
            yield rf"reasoning: {begin} {_ANY} <[{token}]> /\n{{0,2}}/"
        else:
            yield rf"reasoning: {begin} reasoned /\n{{0,2}}/"
            yield f"reasoned[suffix={json.dumps(END_THINK)}]: {_ANY}"

    def _spelt(self, parts: tuple[str, ...] | list[str]) -> str:
        ids = [(part, self._marker_id(part)) for part in parts]
        return " ".join(json.dumps(part) if token is None else f"<[{token}]>" for part, token in ids)


def _schema(schema: Mapping[str, Any]) -> str:
    """Return a schema with what the compiler is to do about white space, and about words that it does not know."""
    options = {"whitespace_pattern": _WHITESPACE, "lenient": False}
    return json.dumps({**schema, "x-guidance": options}, separators=(",", ":"))
