"""What the readers of all formats of tool calls have in common: a state, held text, and how calls are told."""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Mapping
from typing import Any

from services.gateway.syntax.parts import AnswerPart, CallArguments, CallBegun, ContentPart
from services.gateway.syntax.scanning import ObjectScanner

MAX_HELD_CHARS = 16 << 10
"""Of what may turn out to be a call. A longer beginning of one is content."""

_MAX_SPACE_CHARS = 256

HEAD = re.compile(
    r'\s*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*'
    r'"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
"""The beginning of nearly all calls in JSON, up to their arguments, which need not be held back then."""

ToolSchemas = Mapping[str, Mapping[str, Any]]
"""The JSON schema of the parameters of each tool, by its name."""


class CallReader(ABC):
    """Reads content and calls. A subclass has states: methods that use up `_text` and say whether to go on.

    What a state decides depends on the text so far only, never on how it was cut: limits are places in the text.
    White space between calls, and around an answer that is nothing but calls, is no content.
    """

    def __init__(self, max_calls: int | None = None) -> None:
        """`max_calls`: further calls are dropped."""
        self._text = ""  # not used up yet
        self._is_over = False
        self._state: Callable[[], bool] = self._outside
        self._parts: list[AnswerPart] = []
        self._num_calls = 0
        self._max_calls = max_calls
        self._space: str | None = ""  # at the beginning or behind a call; None: there is content since

    def push(self, text: str) -> list[AnswerPart]:
        self._text += text
        return self._run()

    def finish(self) -> list[AnswerPart]:
        self._is_over = True
        self._run_on()
        if self._text:
            self.content(self._text)
            self._text = ""
        if self._space and not self._num_calls:
            self._parts.append(ContentPart(self._space))
        return self._taken()

    @abstractmethod
    def _outside(self) -> bool:
        """The state at the beginning."""

    def _run(self) -> list[AnswerPart]:
        self._run_on()
        return self._taken()

    def _run_on(self) -> None:
        while self._state():
            pass

    def _taken(self) -> list[AnswerPart]:
        parts, self._parts = self._parts, []
        return parts

    def use(self, length: int) -> str:
        """Return so much of the text, which is used up then."""
        used, self._text = self._text[:length], self._text[length:]
        return used

    def go(self, state: Callable[[], bool]) -> bool:
        """Go on in another state."""
        self._state = state
        return True

    def content(self, text: str) -> None:
        if self._space is None:
            if text:
                self._parts.append(ContentPart(text))
            return
        bare = text.lstrip()
        self._space += text[: len(text) - len(bare)]
        if bare or len(self._space) > _MAX_SPACE_CHARS:
            self._parts.append(ContentPart(self._space + bare))
            self._space = None

    def begin(self, name: str) -> None:
        self._space = ""
        if self._is_told(self._num_calls):
            self._parts.append(CallBegun(self._num_calls, name))
        self._num_calls += 1

    def arguments(self, text: str) -> None:
        """Take more of the arguments of the call that was begun last."""
        index = self._num_calls - 1
        if text and self._is_told(index):
            self._parts.append(CallArguments(index, text))

    def _is_told(self, index: int) -> bool:
        return self._max_calls is None or index < self._max_calls


class JsonCallReader(CallReader):
    """Reads calls that are JSON objects; what goes around them is the subclass's."""

    def __init__(self, max_calls: int | None = None) -> None:
        super().__init__(max_calls)
        self._scanner = ObjectScanner()

    def _arguments(self) -> bool:
        length, ended = self._scanner.scan(self._text)
        self.arguments(self.use(length))
        return self.go(self._behind_arguments) if ended else False

    @abstractmethod
    def _behind_arguments(self) -> bool:
        """The state after a call's arguments."""

    def begin_head(self, name: str, length: int) -> bool:
        """Begin a call whose arguments follow after so much text."""
        self.use(length)
        self.begin(name)
        self._scanner = ObjectScanner()
        return self.go(self._arguments)

    def whole_call(self, text: str, names: Container[str] | None = None) -> bool:
        """Tell the call that is all of a text; return whether it is one, and of one of `names`."""
        found = call_of(text)
        if found is None or (names is not None and found[0] not in names):
            return False
        self.begin(found[0])
        self.arguments(found[1])
        return True


def name_of(head: re.Match[str]) -> str | None:
    """Return the name in a `HEAD`; None if it is not JSON."""
    try:
        name: str = json.loads(head[1])
    except ValueError:
        return None
    return name or None


def call_of(text: str) -> tuple[str, str] | None:
    """Return the name and the arguments' text of a JSON object that is a call in one of the usual shapes."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):  # JSON in JSON
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    if not isinstance(arguments, dict | None):
        return None
    return value["name"], json.dumps(arguments or {}, ensure_ascii=False)
