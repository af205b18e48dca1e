"""Reasoning as DeepSeek-R1, Qwen3 and others write it: `<think>`, text, `</think>`, before the answer proper."""

from collections.abc import Callable, Sequence

from services.gateway.syntax.parts import AnswerPart, AnswerReader, ReasoningPart
from services.gateway.syntax.scanning import may_begin, num_undecided

THINK, END_THINK = "<think>", "</think>"


class ReasoningReader:
    """Tells reasoning apart from what another reader reads behind it. Line ends around both are left out."""

    def __init__(self, answer: AnswerReader, *, is_opened: bool) -> None:
        """`is_opened`: the prompt ends inside the reasoning."""
        self._answer = answer
        self._is_opened = is_opened
        self._text = ""
        self._is_over = False
        self._is_at_start = True  # of the reasoning, or of the answer behind it
        self._state: Callable[[], list[AnswerPart]] = self._before
        self._is_done = False  # the state has used up what it can

    def push(self, text: str) -> list[AnswerPart]:
        self._text += text
        return self._run()

    def finish(self) -> list[AnswerPart]:
        self._is_over = True
        return [*self._run(), *self._answer.finish()]

    def _run(self) -> list[AnswerPart]:
        parts: list[AnswerPart] = []
        self._is_done = False
        while not self._is_done:
            parts += self._state()
        return parts

    def _before(self) -> list[AnswerPart]:
        bare = self._text.lstrip()
        if bare.startswith(THINK):
            self._text = bare[len(THINK) :]
            self._state = self._inside
        elif not self._is_over and (not bare or may_begin(bare, (THINK,))):
            self._is_done = True
        else:
            self._state = self._inside if self._is_opened else self._behind
            self._is_at_start = self._is_opened  # without reasoning an answer is told as it is
        return []

    def _inside(self) -> list[AnswerPart]:
        end = self._text.find(END_THINK)
        if end >= 0:
            text, self._text = self._text[:end].rstrip("\n"), self._text[end + len(END_THINK) :]
            told = self._reasoning(text)
            self._is_at_start = True
            self._state = self._behind
            return told
        self._is_done = True
        if self._is_over:
            text, self._text = self._text.rstrip("\n"), ""
        else:
            decided = self._text[: len(self._text) - num_undecided(self._text, (END_THINK,))].rstrip("\n")
            text, self._text = decided, self._text[len(decided) :]
        return self._reasoning(text)

    def _reasoning(self, text: str) -> list[AnswerPart]:
        if self._is_at_start:
            text = text.lstrip("\n")
            self._is_at_start = not text
        return [ReasoningPart(text)] if text else []

    def _behind(self) -> list[AnswerPart]:
        self._is_done = True
        text, self._text = self._text, ""
        if self._is_at_start:
            text = text.lstrip("\n")
            self._is_at_start = not text
        return self._answer.push(text) if text else []


class ReasoningCount:
    """Counts the tokens of one answer's reasoning, markers included, by the bytes that they stand for."""

    def __init__(self, token_bytes: Callable[[int], bytes], *, is_opened: bool) -> None:
        self._token_bytes = token_bytes
        self._is_opened = is_opened
        self._seen = b""  # as much of the end as a marker needs
        self._is_begun: bool | None = None
        self._is_over = False
        self._num_seen = 0
        self._num_tokens = 0

    @property
    def num_tokens(self) -> int:
        return self._num_tokens

    def push(self, ids: Sequence[int]) -> None:
        for token_id in ids:
            if self._is_over:
                return
            self._take(self._token_bytes(token_id))

    def _take(self, data: bytes) -> None:
        self._num_seen += 1
        self._seen += data
        if self._is_begun is None:
            bare = self._seen.lstrip()
            if not self._is_opened and len(bare) < len(THINK) and THINK.encode().startswith(bare):
                return
            self._is_begun = self._is_opened or bare.startswith(THINK.encode())
            self._is_over = not self._is_begun
        if self._is_begun:
            self._num_tokens = self._num_seen
            self._is_over = END_THINK.encode() in self._seen
            self._seen = self._seen[-len(END_THINK) :]
