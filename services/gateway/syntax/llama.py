"""Calls as Llama 3 writes them: an answer that is JSON objects of name and parameters, or has a tag before them."""

import re

from services.gateway.syntax.calls import HEAD, MAX_HELD_CHARS, JsonCallReader, ToolSchemas, name_of
from services.gateway.syntax.scanning import ObjectScanner, may_begin, num_undecided

TAG = "<|python_tag|>"
_FIRST_KEY = re.compile(r'\s*\{\s*"((?:[^"\\]|\\.)*)"')
_BEGINNING = re.compile(r'\s*(?:\{\s*(?:"(?:[^"\\]|\\.)*\\?)?)?')
_KEYS = ("name", "type", "function", "parameters", "arguments")
_BETWEEN = re.compile(r"\s*;?\s*")
_MAX_SPACE_CHARS = 256


class LlamaReader(JsonCallReader):
    """Reads calls at the beginning of an answer, or behind the tag. JSON that names no tool is content."""

    def __init__(self, schemas: ToolSchemas, max_calls: int | None = None) -> None:
        super().__init__(max_calls)
        self._names = frozenset(schemas)
        self._mark = ""  # what went before the object and is content if it is no call

    def _outside(self) -> bool:
        """At the beginning, and behind a call: another may follow."""
        separator = _BETWEEN.match(self._text[:_MAX_SPACE_CHARS])
        length = separator.end() if separator else 0
        if length == _MAX_SPACE_CHARS:
            return self.go(self._plain)
        rest = self._text[length:]
        if (not rest or may_begin(rest, (TAG,))) and not self._is_over:
            return False
        if rest.startswith(TAG):
            self._mark = self.use(length + len(TAG))
            return self.go(self._object)
        if rest.startswith("{"):
            self._mark = self.use(length)
            return self.go(self._object)
        if not rest and self._num_calls and self._is_over:
            self._text = ""
        return self.go(self._plain)

    def _plain(self) -> bool:
        place = self._text.find(TAG)
        if place >= 0:
            self.content(self.use(place))
            self._mark = self.use(len(TAG))
            return self.go(self._object)
        self.content(self.use(len(self._text) - num_undecided(self._text, (TAG,))))
        return False

    def _object(self) -> bool:
        body = self._text[:MAX_HELD_CHARS]
        head = HEAD.match(body)
        if head is not None and (name := name_of(head)) in self._names and name is not None:
            return self.begin_head(name, head.end())
        if head is not None or not self._may_be_call(body):
            return self._is_content()
        length, ended = ObjectScanner().scan(body)
        if ended:
            if not self.whole_call(body[:length], self._names):
                return self._is_content()
            self.use(length)
            return self.go(self._outside)
        if self._is_over or len(body) == MAX_HELD_CHARS:
            return self._is_content()
        return False

    def _may_be_call(self, body: str) -> bool:
        key = _FIRST_KEY.match(body)
        if key is not None:
            return key[1] in _KEYS
        begun = _BEGINNING.match(body)
        return begun is not None and begun.end() == len(body)

    def _is_content(self) -> bool:
        self.content(self._mark)
        return self.go(self._plain)

    def _behind_arguments(self) -> bool:
        """The object has to end, after other keys perhaps."""
        bare = self._text.lstrip()
        if not bare:
            return False
        if bare[0] not in "},":
            return self.go(self._plain)
        self._scanner = ObjectScanner(depth=1)
        return self.go(self._rest)

    def _rest(self) -> bool:
        length, ended = self._scanner.scan(self._text)
        self.use(length)
        return self.go(self._outside) if ended else False
