"""How far one answer is in its grammar: a function of the answer's tokens, and which tokens may follow."""

import os
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
from llguidance import LLExecutor, LLMatcher
from llguidance.numpy import fill_next_token_bitmask_par

from shared.errors import BadRequest
from shared.model.grammar.vocabulary import GrammarVocabulary, Mask

MAX_MASK_THREADS = 8

_MAX_MESSAGE_CHARS = 300


class Guide:
    """One answer's place in its grammar. One thread at a time may use it.

    Nothing but the tokens taken so far determines it: a guide that takes the same tokens elsewhere is the same.
    """

    def __init__(self, matcher: LLMatcher, vocabulary: GrammarVocabulary, ends: Iterable[int]) -> None:
        """`matcher` becomes the guide's own. `ends`: the tokens that end the answer; end-of-sequence tokens that are
        not among them are to be ignored.
        """
        self.matcher = matcher
        self._vocabulary = vocabulary
        self._ends = frozenset(ends)
        self._ignored = vocabulary.eos_ids - self._ends
        self._num_taken = 0

    @property
    def num_words(self) -> int:
        """Words of its masks."""
        return self._vocabulary.num_words

    @property
    def is_complete(self) -> bool:
        """Whether the answer is whole and nothing can be added to it."""
        return self.matcher.is_stopped() and not self.matcher.is_error()

    def take(self, tokens: Sequence[int]) -> None:
        """Go on by some tokens. Raises `BadRequest` for one that may not follow."""
        for token in tokens:
            if not self.matcher.consume_token(token):
                why = readable(self.matcher.get_error())
                raise BadRequest(f"token {self._num_taken} of the answer does not follow its constraint: {why}")
            self._num_taken += 1

    def return_to(self, num_tokens: int) -> None:
        """Forget what was taken behind the first `num_tokens`: a step that fails as a whole is repeated."""
        if num_tokens < self._num_taken:
            self.matcher.rollback(self._num_taken - num_tokens)
            self._num_taken = num_tokens

    def narrowed(self, mask: Mask, *, may_end: bool) -> Mask:
        """Return which tokens of a mask may be chosen: no end before it may be, unless nothing else can follow.

        Raises `BadRequest` where the answer cannot go on: no token of the model follows, or a limit was reached.
        """
        if self.matcher.is_error():
            raise BadRequest(f"the answer cannot go on under its constraint: {readable(self.matcher.get_error())}")
        if self._vocabulary.absent:
            mask = self._vocabulary.without(mask, self._vocabulary.absent)
        is_whole = self.matcher.is_accepting()
        unwanted = self._ignored if may_end else self._ignored | self._ends
        if not is_whole:
            unwanted |= self._vocabulary.eos_ids  # a vocabulary's end may be text as well
        narrowed = self._vocabulary.without(mask, unwanted)
        if narrowed.any():
            return narrowed
        if not (is_whole and mask.any()):
            raise BadRequest("no token of the model can follow under the answer's constraint")
        return mask


class MaskWriter:
    """Computes the masks of several answers at once, in threads of its own that start with the first of them."""

    @cached_property
    def _executor(self) -> LLExecutor:
        return LLExecutor(min(MAX_MASK_THREADS, len(os.sched_getaffinity(0))))

    def write(self, guides: Sequence[Guide], may_end: Sequence[bool]) -> list[Mask | BadRequest]:
        """Return for each guide which tokens may follow, or why none can. All guides are of one vocabulary."""
        if not guides:
            return []
        masks = np.zeros((len(guides), guides[0].num_words), dtype=np.int32)
        fill_next_token_bitmask_par(self._executor, [(guide.matcher, i) for i, guide in enumerate(guides)], masks)
        return [_narrowed(*each) for each in zip(guides, masks.view(np.uint32), may_end, strict=True)]


def _narrowed(guide: Guide, mask: Mask, may_end: bool) -> Mask | BadRequest:
    try:
        return guide.narrowed(mask, may_end=may_end)
    except BadRequest as error:
        return error


def readable(message: str) -> str:
    """Return what a compiler says is wrong in one line, without the excerpts and positions around it."""
    first, *others = message.strip().splitlines() or [""]
    return " ".join([first, *(line for line in others if line.startswith("error:"))])[:_MAX_MESSAGE_CHARS]
