"""From constraints to guides: compiled in threads, within limits of size and time, and kept for the next request."""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from threading import Lock

import numpy as np
from llguidance import LLMatcher, LLParserLimits, grammar_from

from shared.errors import BadRequest, Overloaded
from shared.model.grammar.deep import in_deep_thread
from shared.model.grammar.guide import Guide, readable
from shared.model.grammar.vocabulary import GrammarVocabulary
from shared.sampling.constraint import Constraint, ConstraintKind

MAX_KEPT = 64
MAX_COMPILING, MAX_AT_ONCE = 64, 2
MAX_COMPILE_S = 10.0

_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,32}"
"""Between the tokens of JSON. Without a bound, models that like line ends fill an answer with them."""

_LIMITS = LLParserLimits(verbose_errors=False, max_lexer_states=50_000, max_items_in_row=1000)
"""Below the compiler's own: the states of one answer take 100 MB at most, and a mask tens of milliseconds."""


class Grammars:
    """Compiles constraints for one model, each once as long as it is among the last used. Belongs to an event loop.

    At most `MAX_AT_ONCE` are compiled at a time. A compilation cannot be stopped: the compiler's own limits end it,
    while who waits for it waits for `MAX_COMPILE_S` at most.
    """

    def __init__(self, load: Callable[[], GrammarVocabulary]) -> None:
        """`load` returns the model's tokens; called once, in a thread, for the first constraint."""
        self._load = load
        self._vocabulary: GrammarVocabulary | None = None
        self._loading = Lock()
        self._kept: OrderedDict[Constraint, LLMatcher] = OrderedDict()
        self._under_way: dict[Constraint, asyncio.Task[LLMatcher]] = {}
        self._running: set[Constraint] = set()
        self._turns = asyncio.Semaphore(MAX_AT_ONCE)

    async def check(self, constraint: Constraint) -> None:
        """Raise `BadRequest` saying why a constraint cannot be compiled, `Overloaded` when too many wait to be."""
        await self._compiled(constraint)

    async def guide(self, constraint: Constraint, ends: Iterable[int], generated: Sequence[int] = ()) -> Guide:
        """Return the guide of an answer that begins with `generated`; `ends` are the tokens that end it.

        Raises as `check`, and `BadRequest` when `generated` cannot begin such an answer.
        """
        matcher = await self._compiled(constraint)
        return await asyncio.to_thread(self._begun, matcher, ends, generated)

    def _begun(self, matcher: LLMatcher, ends: Iterable[int], generated: Sequence[int]) -> Guide:
        guide = Guide(matcher.deep_copy(), self._tokens(), ends)
        guide.take(generated)
        return guide

    async def _compiled(self, constraint: Constraint) -> LLMatcher:
        kept = self._kept.get(constraint)
        if kept is not None:
            self._kept.move_to_end(constraint)
            return kept
        task = self._under_way.get(constraint)
        if task is None:
            if len(self._under_way) >= MAX_COMPILING:
                raise Overloaded(f"{MAX_COMPILING} constraints are being compiled already")
            task = asyncio.create_task(self._compile(constraint), name="grammar")
            self._under_way[constraint] = task
            task.add_done_callback(partial(self._ended, constraint))
        try:
            async with asyncio.timeout(MAX_COMPILE_S):
                return await asyncio.shield(task)
        except TimeoutError:
            if constraint in self._running:
                raise BadRequest(f"takes longer than {MAX_COMPILE_S:g} s to compile") from None
            raise Overloaded("too many constraints are being compiled") from None

    async def _compile(self, constraint: Constraint) -> LLMatcher:
        async with self._turns:
            self._running.add(constraint)
            try:
                return await in_deep_thread(partial(self._make, constraint), "grammar")
            finally:
                self._running.discard(constraint)

    def _ended(self, constraint: Constraint, task: "asyncio.Task[LLMatcher]") -> None:
        del self._under_way[constraint]
        if task.cancelled() or task.exception() is not None:
            return
        self._kept[constraint] = task.result()
        if len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)

    def _tokens(self) -> GrammarVocabulary:
        with self._loading:
            if self._vocabulary is None:
                self._vocabulary = self._load()
            return self._vocabulary

    def _make(self, constraint: Constraint) -> LLMatcher:
        """Compile, and see whether an answer can begin. Runs in a thread."""
        vocabulary = self._tokens()
        matcher = LLMatcher(vocabulary.backend, _source(constraint), log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise BadRequest(f"cannot be compiled: {readable(matcher.get_error())}")
        begin = Guide(matcher.deep_copy(), vocabulary, ())
        try:
            begin.narrowed(np.frombuffer(begin.matcher.compute_bitmask(), dtype=np.uint32), may_end=True)
        except BadRequest as error:
            raise BadRequest(f"no answer can begin: {error}") from None
        return matcher


def _source(constraint: Constraint) -> str:
    """Return a constraint as the compiler reads it. Raises `BadRequest` where that can be seen from its text."""
    kind, text = constraint.kind, constraint.text
    try:
        if kind is ConstraintKind.JSON_SCHEMA:
            return LLMatcher.grammar_from_json_schema(
                text, defaults={"whitespace_pattern": _WHITESPACE}, overrides={"lenient": False}
            )
        if kind is ConstraintKind.REGEX:
            return LLMatcher.grammar_from_regex(text)
        if kind is ConstraintKind.GRAMMAR:
            return grammar_from("grammar", text)
        return LLMatcher.grammar_from_lark(f"start: {' | '.join(map(json.dumps, _choices(text)))}")
    except RecursionError:
        raise BadRequest("is nested too deeply") from None
    except ValueError as error:
        raise BadRequest(f"cannot be read: {readable(str(error))}") from None


def _choices(text: str) -> list[str]:
    choices = json.loads(text)
    if not (isinstance(choices, list) and choices and all(isinstance(choice, str) for choice in choices)):
        raise BadRequest("must be a list of at least one string")
    return choices
