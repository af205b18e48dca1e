"""Calls as Hermes and Qwen write them: `<tool_call>`, a JSON object of name and arguments, `</tool_call>`."""

import re

from services.gateway.syntax.calls import HEAD, MAX_HELD_CHARS, JsonCallReader, ToolSchemas, name_of
from services.gateway.syntax.scanning import num_undecided

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_MAX_TAIL_CHARS = 1024
_END = re.compile(r"\s*\}?\s*")


class HermesReader(JsonCallReader):
    """Reads them anywhere in an answer."""

    def __init__(self, _schemas: ToolSchemas, max_calls: int | None = None) -> None:
        super().__init__(max_calls)

    def _outside(self) -> bool:
        place = self._text.find(OPEN)
        if place >= 0:
            self.content(self.use(place))
            return self.go(self._opened)
        self.content(self.use(len(self._text) - num_undecided(self._text, (OPEN,))))
        return False

    def _opened(self) -> bool:
        """The text begins with the marker."""
        body = self._text[len(OPEN) : MAX_HELD_CHARS]
        head, end = HEAD.match(body), body.find(CLOSE)
        if head is not None and (end < 0 or head.end() <= end) and (name := name_of(head)) is not None:
            return self.begin_head(name, len(OPEN) + head.end())
        if end >= 0:
            whole = self.use(len(OPEN) + end + len(CLOSE))
            if not self.whole_call(body[:end]):
                self.content(whole)
            return self.go(self._outside)
        if self._is_over:
            if len(self._text) < MAX_HELD_CHARS and self.whole_call(body):
                self._text = ""
            return False
        if len(self._text) < MAX_HELD_CHARS:
            return False
        self.content(self.use(len(OPEN)))
        return self.go(self._outside)

    def _behind_arguments(self) -> bool:
        tail = self._text[:_MAX_TAIL_CHARS]
        end, other = tail.find(CLOSE), tail.find(OPEN)
        if end >= 0 and not 0 <= other < end:
            self.use(end + len(CLOSE))
            return self.go(self._outside)
        if other >= 0:  # the model forgot to close this one
            self.use(other)
            return self.go(self._outside)
        if len(tail) < _MAX_TAIL_CHARS and not self._is_over:
            return False
        ended = _END.match(tail)
        self.use(ended.end() if ended else 0)
        if CLOSE.startswith(self._text):  # cut off
            self._text = ""
        return self.go(self._outside)
