"""Prompts that nobody has seen, asked of a suite over a WAN."""

import random
from dataclasses import dataclass
from typing import NamedTuple

import aiohttp

from benchmarks import serve
from benchmarks.client import CompletionRequest, complete
from benchmarks.prompts import BenchPrompt, make_prompt
from benchmarks.wan.network import Wan
from benchmarks.wan.suite import EAST, WEST, WanSuite

OUTPUT_TOKENS = 2
FIRST_TOKENS = range(1000, 40_000)
"""Every model's vocabulary has them. Other first tokens make all blocks of a prompt new."""


class WanAnswer(NamedTuple):
    """One request."""

    ttft_s: float
    wire_bytes: int  # over the link, with all headers
    cached_tokens: int


@dataclass(frozen=True)
class Bench:
    """A running suite, and the words of its prompts."""

    network: Wan
    suite: WanSuite
    session: aiohttp.ClientSession
    model: str
    prompt: list[int]

    def new_prompt(self, num_tokens: int) -> list[int]:
        """Return a prompt that is new to the suite. `prompt` has at least so many tokens."""
        return [*random.choices(FIRST_TOKENS, k=2), *self.prompt[2:num_tokens]][:num_tokens]

    async def ask(self, url: str, token_ids: list[int]) -> WanAnswer:
        """Ask a gateway. Raises `RuntimeError`."""
        before = self.network.carried(EAST, WEST).num_bytes
        request = CompletionRequest(url, self.model, BenchPrompt(token_ids, len(token_ids)), OUTPUT_TOKENS)
        outcome = await complete(self.session, request)
        if outcome.error is not None:
            raise RuntimeError(outcome.error)
        wire_bytes = self.network.carried(EAST, WEST).num_bytes - before
        return WanAnswer(outcome.ttft_s, wire_bytes, outcome.cached_tokens)


async def open_bench(network: Wan, suite: WanSuite, session: aiohttp.ClientSession, num_tokens: int) -> Bench:
    """Wait for the suite and have it tokenise a text of `num_tokens`."""
    await suite.ready()
    model = await serve.first_model(session, suite.url)
    prompt = await make_prompt(session, suite.url, model, "text", 1, num_tokens)
    assert isinstance(prompt.content, list)
    return Bench(network, suite, session, model, prompt.content)
