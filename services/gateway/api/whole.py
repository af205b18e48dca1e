"""Answers that do not stream: choices gathered, the best of them chosen, and much of them spelt in a thread."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from services.gateway.api.replies.reply import Choice
from services.gateway.request.generation import Prepared
from services.gateway.request.text import ChoiceDelta, ScoredPrompt

T = TypeVar("T")

INLINE_TOKENS = 256
"""Log-probabilities of more tokens are spelt in a thread: with its alternatives, each takes tens of microseconds."""


def shown_choices(
    parts: Sequence[Sequence[ChoiceDelta]], scored: Sequence[ScoredPrompt], prepared: Prepared
) -> list[Choice]:
    """Return what the client is shown of finished choices: `parts` are the deltas of each, `scored` the prompts."""
    found: list[Choice] = []
    for number, prompt in enumerate(scored):
        first = number * prepared.num_choices
        choices = [_joined(deltas) for deltas in parts[first : first + prepared.num_choices]]
        for whole in choices if prepared.num_shown is None else likeliest(choices, prepared.num_shown):
            assert whole.finish_reason is not None, "a choice that has not finished"
            found.append(Choice(whole.text, whole.ids, whole.finish_reason, whole.tokens, prompt))
    return found


def num_told(choices: Sequence[Choice]) -> int:
    """Return of how many tokens something is told."""
    of_prompts = (0 if choice.prompt is None else len(choice.prompt.logprobs) for choice in choices)
    return sum(len(choice.tokens) for choice in choices) + sum(of_prompts)


def likeliest(choices: Sequence[ChoiceDelta], num_shown: int) -> list[ChoiceDelta]:
    """Return the choices of the greatest mean log-probability of a token, the best first, of equal ones the first.

    A choice without tokens is as likely as can be.
    """
    return sorted(choices, key=lambda choice: -choice.logprob / max(1, len(choice.ids)))[:num_shown]


async def spelt(num_tokens: int, work: Callable[[], T]) -> T:
    """Return what `work` does, which spells so many tokens: in a thread if they are many."""
    return work() if num_tokens <= INLINE_TOKENS else await asyncio.to_thread(work)


def _joined(deltas: Sequence[ChoiceDelta]) -> ChoiceDelta:
    """Join deltas in time linear in their number."""
    return ChoiceDelta(
        choice=deltas[0].choice,
        text="".join(delta.text for delta in deltas),
        ids=tuple(token_id for delta in deltas for token_id in delta.ids),
        finish_reason=deltas[-1].finish_reason,
        tokens=tuple(token for delta in deltas for token in delta.tokens),
        logprob=sum(delta.logprob for delta in deltas),
    )
