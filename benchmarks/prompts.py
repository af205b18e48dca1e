"""Prompts of a given length in tokens: random words, or running text."""

import random
from dataclasses import dataclass
from pydoc_data import topics
from typing import Literal

import aiohttp

Dataset = Literal["random", "text"]
WORDS_PER_BATCH = 512


@dataclass(frozen=True)
class BenchPrompt:
    """`content` is what goes on the wire: token ids when the server told us its tokens, else text of as many words."""

    content: str | list[int]
    num_tokens: int | None


def words(dataset: Dataset, seed: int, count: int) -> str:
    """`count` words. `random` draws them anew for each seed; `text` is a passage of the Python manual, which every
    interpreter carries, from a place that the seed chooses."""
    source = _manual()
    rng = random.Random(f"{dataset}-{seed}")
    if dataset == "random":
        vocabulary = sorted({word for word in source if word.isalpha()})
        return " ".join(rng.choices(vocabulary, k=count))
    start = rng.randrange(len(source))
    return " ".join(source[(start + i) % len(source)] for i in range(count))


async def make_prompt(
    session: aiohttp.ClientSession, url: str, model: str, dataset: Dataset, seed: int, input_len: int
) -> BenchPrompt:
    """Exactly `input_len` tokens where the server has /tokenize (ours, vLLM), otherwise `input_len` words."""
    count = input_len
    while True:
        text = words(dataset, seed, count)
        ids = await _tokenize(session, url, model, text)
        if ids is None:
            return BenchPrompt(words(dataset, seed, input_len), None)
        if len(ids) >= input_len:
            return BenchPrompt(ids[:input_len], input_len)
        count += WORDS_PER_BATCH  # a tokeniser that knows longer pieces than our words


async def _tokenize(session: aiohttp.ClientSession, url: str, model: str, text: str) -> list[int] | None:
    async with session.post(f"{url}/tokenize", json={"model": model, "prompt": text}) as response:
        if response.status != 200 or response.content_type != "application/json":
            return None
        answer = await response.json()
    tokens = answer.get("tokens") if isinstance(answer, dict) else None
    return tokens or None


def _manual() -> list[str]:
    return " ".join(topics.topics[name] for name in sorted(topics.topics)).split()
