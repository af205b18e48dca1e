"""Calls as Qwen3-Coder writes them: `<function=…>` with a `<parameter=…>` for each argument, values as plain text."""

import json
import re
from collections.abc import Mapping
from typing import Any

from services.gateway.syntax.calls import MAX_HELD_CHARS, CallReader, ToolSchemas
from services.gateway.syntax.scanning import may_begin, num_undecided

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FUNCTION, END_FUNCTION = "<function=", "</function>"
PARAMETER, END_PARAMETER = "<parameter=", "</parameter>"
_NAME = re.compile(r"<(?:function|parameter)=([^>\n]{1,256})>")
_MAX_NAME_CHARS = 280
_MAX_SPACE_CHARS = 256
_PYTHON_WORDS = {"True": True, "False": False, "None": None}


class QwenReader(CallReader):
    """Reads them anywhere in an answer. Strings are told as they come, other values once they are whole."""

    def __init__(self, schemas: ToolSchemas, max_calls: int | None = None) -> None:
        super().__init__(max_calls)
        self._schemas = schemas
        self._properties: Mapping[str, Any] = {}
        self._num_arguments = 0
        self._is_string = True
        self._is_begun = False  # the string has its first quote

    def _outside(self) -> bool:
        found = [(place, marker) for marker in (OPEN, FUNCTION) if (place := self._text.find(marker)) >= 0]
        if found:
            place, marker = min(found)
            self.content(self.use(place))
            return self.go(self._opened if marker == OPEN else self._function)
        self.content(self.use(len(self._text) - num_undecided(self._text, (OPEN, FUNCTION))))
        return False

    def _opened(self) -> bool:
        rest = self._text[len(OPEN) :]
        bare = rest.lstrip()
        num_space = len(rest) - len(bare)
        if bare.startswith(FUNCTION) and num_space <= _MAX_SPACE_CHARS:
            self.use(len(OPEN) + num_space)
            return self.go(self._function)
        if not self._is_over and num_space <= _MAX_SPACE_CHARS and (not bare or may_begin(bare, (FUNCTION,))):
            return False
        self.content(self.use(len(OPEN)))
        return self.go(self._outside)

    def _function(self) -> bool:
        """The text begins with the marker."""
        head = self._text[:_MAX_NAME_CHARS]
        named = _NAME.match(head)
        if named is None:
            if not (self._is_over or ">" in head or "\n" in head or len(head) == _MAX_NAME_CHARS):
                return False
            self.content(self.use(len(FUNCTION)))
            return self.go(self._outside)
        name = named[1].strip().strip("\"'")
        self.use(named.end())
        self.begin(name)
        self.arguments("{")
        properties = self._schemas.get(name, {}).get("properties", {})
        self._properties = properties if isinstance(properties, dict) else {}
        self._num_arguments = 0
        return self.go(self._inside)

    def _inside(self) -> bool:
        """Between parameters; other text there is dropped."""
        self._text = self._text.lstrip()
        if self._text.startswith(PARAMETER):
            return self._parameter()
        if self._text.startswith(END_FUNCTION):
            self.use(len(END_FUNCTION))
            self.arguments("}")
            return self.go(self._behind)
        if not self._text:
            return False
        if may_begin(self._text, (PARAMETER, END_FUNCTION)):
            if self._is_over:
                self._text = ""
            return False
        other = self._text.find("<", 1)
        self.use(other if other > 0 else len(self._text))
        return True

    def _parameter(self) -> bool:
        head = self._text[: _MAX_NAME_CHARS + 1]
        named = _NAME.match(head)
        if named is None:
            if self._is_over:
                self._text = ""
                return False
            if not (">" in head or "\n" in head or len(head) > _MAX_NAME_CHARS):
                return False
            self.use(len(PARAMETER))
            return True
        if named.end() == len(self._text) and not self._is_over:
            return False  # a line's end may follow
        self.use(named.end())
        self._text = self._text.removeprefix("\n")
        name = named[1].strip().strip("\"'")
        self.arguments(f"{', ' if self._num_arguments else ''}{json.dumps(name, ensure_ascii=False)}: ")
        self._num_arguments += 1
        self._is_string = _is_string(self._properties.get(name))
        self._is_begun = False
        return self.go(self._value)

    def _value(self) -> bool:
        end = self._text.find(END_PARAMETER)
        if not self._is_string:
            return self._other_value(end)
        if end < 0:
            if not self._is_over:
                markers = (f"\n{END_PARAMETER}", END_PARAMETER)
                self._string(self.use(len(self._text) - num_undecided(self._text, markers)))
            else:
                self._string(self.use(len(self._text)))
            return False
        value = self.use(end)
        self.use(len(END_PARAMETER))
        self._string(value.removesuffix("\n"))
        self.arguments('"')
        return self.go(self._inside)

    def _string(self, text: str) -> None:
        if not self._is_begun:
            self._is_begun = True
            self.arguments('"')
        self.arguments(json.dumps(text, ensure_ascii=False)[1:-1])

    def _other_value(self, end: int) -> bool:
        if 0 <= end < MAX_HELD_CHARS:
            value = self.use(end)
            self.use(len(END_PARAMETER))
            self.arguments(_as_json(value.removesuffix("\n")))
            return self.go(self._inside)
        if len(self._text) >= MAX_HELD_CHARS + len(END_PARAMETER):
            self._is_string = True
            return True
        if self._is_over:  # half a value is none that JSON has
            self._text = ""
        return False

    def _behind(self) -> bool:
        bare = self._text.lstrip()
        num_space = len(self._text) - len(bare)
        if bare.startswith(CLOSE) and num_space <= _MAX_SPACE_CHARS:
            self.use(num_space + len(CLOSE))
            return self.go(self._outside)
        if num_space <= _MAX_SPACE_CHARS and (not bare or may_begin(bare, (CLOSE,))):
            if self._is_over:
                self._text = ""
            return False
        return self.go(self._outside)


def _is_string(schema: Any) -> bool:
    """Return whether an argument is text: unless its schema says something else."""
    if not isinstance(schema, dict):
        return True
    kind = schema.get("type")
    if kind is None:
        values = schema.get("enum", [schema.get("const", "")])
        has_parts = any(key in schema for key in ("anyOf", "oneOf", "allOf", "$ref"))
        return not has_parts and isinstance(values, list) and all(isinstance(value, str) for value in values)
    return bool(kind == "string")


def _as_json(text: str) -> str:
    """Return a value's text as JSON; as a string what cannot be read as anything else."""
    bare = text.strip()
    if bare in _PYTHON_WORDS:
        return json.dumps(_PYTHON_WORDS[bare])
    try:
        return json.dumps(json.loads(bare), ensure_ascii=False)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
