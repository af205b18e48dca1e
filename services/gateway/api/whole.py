"""Answers that do not stream: choices gathered, the best of them chosen, and written in one go."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from aiohttp import web

from services.gateway.api.replies.reply import Choice, Reply, encode
from services.gateway.request.choices import Choices
from services.gateway.request.generation import Prepared
from services.gateway.request.text import ChoiceDelta

T = TypeVar("T")

INLINE_TOKENS = 256
"""Log-probabilities of more tokens are spelt in a thread: with its alternatives, each takes tens of microseconds."""


async def answered(choices: Choices, reply: Reply, prepared: Prepared) -> web.Response:
    """Wait for all choices; return the answer."""
    parts: list[list[ChoiceDelta]] = [[] for _ in prepared.requests]
    async for deltas in choices:
        for delta in deltas:
            parts[delta.choice].append(delta)
    found: list[Choice] = []
    for prompt, scored in enumerate(choices.scored_prompts):
        first = prompt * prepared.num_choices
        of_prompt = [_joined(deltas) for deltas in parts[first : first + prepared.num_choices]]
        shown = of_prompt if prepared.num_shown is None else likeliest(of_prompt, prepared.num_shown)
        for whole in shown:
            assert whole.finish_reason is not None, "a choice that has not finished"
            found.append(Choice(whole.text, whole.ids, whole.finish_reason, whole.tokens, scored))
    num_told = sum(len(choice.tokens) for choice in found) + sum(len(p.logprobs) for p in choices.scored_prompts)
    text = await spelt(num_told, partial(_text, reply, found, choices))
    return web.json_response(text=text)


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


def _text(reply: Reply, choices: Sequence[Choice], finished: Choices) -> str:
    return encode(reply.whole(choices, finished.usage))
