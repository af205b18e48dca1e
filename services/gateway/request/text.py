"""From token ids to the text that a client may see: incremental detokenising and stop strings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from services.gateway.syntax.scanning import num_undecided
from shared.model.text.tokenizer import Tokenizer
from shared.sampling.logprobs import TokenLogprobs
from shared.workers.decode import FinishReason


@dataclass(frozen=True, slots=True)
class TextRules:
    """How one request wants its text."""

    stop: tuple[str, ...] = ()
    include_stop: bool = False  # whether a stop string that was met is part of the text
    min_tokens: int = 0  # stop strings count only after as many tokens
    skip_special_tokens: bool = True
    hidden_ids: frozenset[int] = frozenset()  # stop tokens: counted, never shown
    tells_all: bool = False  # log-probabilities of tokens without text too, behind which no stop string was met
    shown_ids: frozenset[int] = frozenset()  # special tokens that are text all the same: somebody reads them


class ShownToken(NamedTuple):
    """A token some of whose text is shown."""

    id: int
    logprobs: TokenLogprobs | None  # None: of a prompt's first token, which follows nothing
    offset: int  # where its text, or the character that it is a part of, begins in the choice's text


class ScoredPrompt(NamedTuple):
    """A prompt's tokens and what was told of all but the first."""

    token_ids: Sequence[int]
    logprobs: Sequence[TokenLogprobs]


class TextDelta(NamedTuple):
    """What some tokens added to a choice."""

    text: str
    num_tokens: int  # tokens used, the one that completed a stop string included
    finish_reason: FinishReason | None
    tokens: tuple[ShownToken, ...] = ()  # those that `text` begins to show, where log-probabilities came with them


class ChoiceDelta(NamedTuple):
    """What was added to one choice."""

    choice: int  # which of them
    text: str
    ids: tuple[int, ...]  # generated, shown as text or not
    finish_reason: FinishReason | None  # on the choice's last delta
    tokens: tuple[ShownToken, ...] = ()  # that `text` begins to show, if log-probabilities were asked for
    logprob: float = 0.0  # the sum of those of `ids`, if they were asked for

    def joined(self, later: "ChoiceDelta") -> "ChoiceDelta":
        text, ids, tokens = self.text + later.text, self.ids + later.ids, self.tokens + later.tokens
        return ChoiceDelta(self.choice, text, ids, later.finish_reason, tokens, self.logprob + later.logprob)


class StopMatcher:
    """Finds stop strings in text that comes in pieces, and holds back what may turn out to begin one."""

    def __init__(self, stop: Sequence[str], include: bool = False) -> None:
        self._stop = tuple(stop)
        self._include = include
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Return the text that may be shown now, and whether a stop string ended it."""
        if not self._stop:
            return text, False
        self._held += text
        found = [(start, len(stop)) for stop in self._stop if (start := self._held.find(stop)) >= 0]
        if found:
            start, length = min(found)
            shown = self._held[: start + (length if self._include else 0)]
            self._held = ""
            return shown, True
        shown_length = len(self._held) - num_undecided(self._held, self._stop)
        shown, self._held = self._held[:shown_length], self._held[shown_length:]
        return shown, False

    def flush(self) -> str:
        """Return what was held back: no more text comes."""
        held, self._held = self._held, ""
        return held


class ChoiceText:
    """The text of one choice. After a delta with a finish reason nothing more may be pushed."""

    def __init__(self, tokenizer: Tokenizer, rules: TextRules, first_offset: int = 0) -> None:
        """`first_offset`: where the text begins in what the client is shown."""
        self._rules = rules
        self._detokenizer = tokenizer.detokenizer(rules.skip_special_tokens, rules.shown_ids)
        skips = rules.skip_special_tokens and not rules.tells_all
        self._untold_ids = tokenizer.special_ids - rules.shown_ids if skips else frozenset()
        self._matcher = StopMatcher(rules.stop, rules.include_stop)
        self._num_tokens = 0
        self._num_decoded = first_offset  # characters, shown or held back
        self._num_shown = first_offset
        self._unshown: list[ShownToken] = []

    def push(
        self, ids: Sequence[int], finish_reason: FinishReason | None, logprobs: Sequence[TokenLogprobs] = ()
    ) -> TextDelta:
        """Take the next ids, in steps of one so that tokens after a stop string are not counted. `logprobs` is
        parallel to them, or empty."""
        if finish_reason is None and not (self._rules.stop or logprobs or self._unshown):
            return self._push_plain(ids)
        shown: list[str] = []
        for used, token_id in enumerate(ids, start=1):
            self._num_tokens += 1
            is_hidden = finish_reason == "stop" and used == len(ids) and token_id in self._rules.hidden_ids
            if logprobs and (self._rules.tells_all or not (is_hidden or token_id in self._untold_ids)):
                self._unshown.append(ShownToken(token_id, logprobs[used - 1], self._num_decoded))
            if is_hidden:
                continue
            text, stopped = self._take(self._detokenizer.push(token_id))
            shown.append(text)
            if stopped:
                return self._delta(shown, used, "stop")
        if finish_reason is not None:
            text, stopped = self._take(self._detokenizer.finish())
            shown += [text, "" if stopped else self._matcher.flush()]
            if not stopped:
                return self._delta(shown, len(ids), finish_reason, tells_rest=self._rules.tells_all)
        return self._delta(shown, len(ids), finish_reason and "stop")

    def _push_plain(self, ids: Sequence[int]) -> TextDelta:
        """Do what `push` does where nothing can end the text or is to be told of its tokens: nearly always."""
        text = "".join([self._detokenizer.push(token_id) for token_id in ids])
        self._num_decoded += len(text)
        self._num_shown += len(text)
        return TextDelta(text, len(ids), None)

    def _take(self, text: str) -> tuple[str, bool]:
        self._num_decoded += len(text)
        if self._num_tokens <= self._rules.min_tokens:
            return text, False
        return self._matcher.push(text)

    def _delta(
        self,
        shown: Sequence[str],
        num_tokens: int,
        finish_reason: FinishReason | None,
        *,
        tells_rest: bool = False,
    ) -> TextDelta:
        """Tokens go out with the first character of their text: those behind a stop string never do.

        `tells_rest`: all do, for nothing was left out of the text.
        """
        text = "".join(shown)
        self._num_shown += len(text)
        if not self._unshown:
            return TextDelta(text, num_tokens, finish_reason)
        num_begun = sum(tells_rest or token.offset < self._num_shown for token in self._unshown)
        tokens, self._unshown = self._unshown[:num_begun], self._unshown[num_begun:]
        return TextDelta(text, num_tokens, finish_reason, tuple(tokens))
