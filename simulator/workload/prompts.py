"""What requests ask: prompts with the keys of their blocks, and the length of answers."""

import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from shared.ids import BlockKey
from shared.kv.hashing import KEY_BYTES


class PromptDraw(NamedTuple):
    """One prompt. `keys` are those of its full blocks: equal keys mean an equal prefix."""

    num_tokens: int
    num_output: int
    keys: Sequence[BlockKey]


class PromptSource(Protocol):
    """Prompts, without end or with one."""

    def prompts(self, draw: random.Random, block_tokens: int) -> Iterator[PromptDraw]:
        """Yield them, lazily."""


class TokenCounts(Protocol):
    """A distribution of whole numbers of tokens, at least 1."""

    def sample(self, draw: random.Random) -> int:
        """Draw a number."""


@dataclass(frozen=True, slots=True)
class FixedTokens:
    tokens: int

    def sample(self, draw: random.Random) -> int:
        return self.tokens


@dataclass(frozen=True, slots=True)
class LogNormalTokens:
    """ln L is normal, given that L lies within the limits: values outside are drawn again."""

    mu: float
    sigma: float
    least: int = 1
    most: int = 1 << 30

    def sample(self, draw: random.Random) -> int:
        while True:
            tokens = draw.lognormvariate(self.mu, self.sigma)
            if self.least <= tokens <= self.most:
                return max(1, round(tokens))


@dataclass(frozen=True, slots=True)
class ExponentialTokens:
    """Geometric in effect: exponential, rounded up."""

    mean: float

    def sample(self, draw: random.Random) -> int:
        return max(1, math.ceil(draw.expovariate(1 / self.mean)))


@dataclass(frozen=True, slots=True)
class SinglePrompts:
    """Prompts that share nothing with one another."""

    inputs: TokenCounts
    outputs: TokenCounts

    def prompts(self, draw: random.Random, block_tokens: int) -> Iterator[PromptDraw]:
        while True:
            num_tokens = self.inputs.sample(draw)
            keys = fresh_keys(draw, num_tokens // block_tokens)
            yield PromptDraw(num_tokens, self.outputs.sample(draw), keys)


@dataclass(frozen=True, slots=True)
class Conversations:
    """Turns that extend one another behind a common system prompt; `num_open` conversations take turns at random.

    After a turn, a conversation ends with probability `1 / mean_turns`, and a new one takes its place. The answer
    becomes a part of the next prompt.
    """

    system_tokens: int
    first: TokenCounts  # tokens of the first message
    later: TokenCounts
    outputs: TokenCounts
    mean_turns: float = 4.0
    num_open: int = 100
    most_tokens: int = 131_072  # a conversation that is longer ends

    def prompts(self, draw: random.Random, block_tokens: int) -> Iterator[PromptDraw]:
        system = fresh_keys(draw, self.system_tokens // block_tokens)
        opened = [self._start(draw, system) for _ in range(self.num_open)]
        while True:
            index = draw.randrange(len(opened))
            tokens, keys = opened[index]
            num_output = self.outputs.sample(draw)
            num_keys = tokens // block_tokens
            keys = [*keys, *fresh_keys(draw, num_keys - len(keys))]
            yield PromptDraw(tokens, num_output, keys)
            tokens += num_output + self.later.sample(draw)
            ends = tokens > self.most_tokens or draw.random() < 1 / self.mean_turns
            opened[index] = self._start(draw, system) if ends else (tokens, keys)

    def _start(self, draw: random.Random, system: list[BlockKey]) -> tuple[int, list[BlockKey]]:
        return min(self.most_tokens, self.system_tokens + self.first.sample(draw)), list(system)


def fresh_keys(draw: random.Random, num_blocks: int) -> list[BlockKey]:
    """Return keys that nobody else has."""
    packed = draw.randbytes(KEY_BYTES * num_blocks)
    return [BlockKey(packed[start : start + KEY_BYTES]) for start in range(0, len(packed), KEY_BYTES)]


def extended(keys: Sequence[BlockKey], num_blocks: int, name: str) -> Sequence[BlockKey]:
    """Return a chain of so many keys that goes on behind `keys`, where the answer called `name` fills blocks."""
    if num_blocks <= len(keys):
        return keys
    chain = list(keys)
    while len(chain) < num_blocks:
        before = chain[-1] if chain else b""
        chain.append(BlockKey(hashlib.sha256(before + name.encode()).digest()))
    return chain
