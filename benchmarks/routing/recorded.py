"""Recorded requests and their synthetic twins, in slices: each seed gets another part of a trace."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from shared.ids import BlockKey
from simulator.workload.arrivals import BurstArrivals, PoissonArrivals
from simulator.workload.prompts import Conversations, ExponentialTokens, LogNormalTokens, SinglePrompts
from simulator.workload.traces import TRACE_BLOCK_TOKENS, TracedRequest, read_azure, read_mooncake
from simulator.workload.workload import PromptArrival

CONVERSATION = Path("mooncake-traces", "conversation_trace.jsonl")
AZURE = (
    Path("azure-llm-2023", "AzureLLMInferenceTrace_conv.csv"),
    Path("azure-llm-2023", "AzureLLMInferenceTrace_code.csv"),
)
SHORT_BLOCK_TOKENS = 64
"""Blocks of a trace without prefixes and with short prompts: decode computes less than one of each."""
TWIN_REQUESTS = 12_000
"""Of a synthetic twin: as many as the conversation trace has."""


@dataclass(frozen=True)
class SlicedTrace:
    """As many requests as a slice has from the seed's part of a trace, `speedup` times as fast as recorded."""

    trace: Sequence[TracedRequest]
    dc: str
    slice_requests: int
    num_requests: int
    speedup: float

    def requests(self, seed: int, block_tokens: int) -> Iterator[PromptArrival]:
        number = seed % (len(self.trace) // self.slice_requests)
        begin = number * self.slice_requests
        start_s = self.trace[begin].at_s
        for request in islice(self.trace, begin, begin + self.num_requests):
            yield PromptArrival((request.at_s - start_s) / self.speedup, self.dc, request.prompt)


def conversation_trace(folder: Path | None) -> list[TracedRequest]:
    """Return the conversation trace of a folder of public traces, or a synthetic twin of it."""
    if folder is not None:
        return read_mooncake(folder / CONVERSATION)
    prompts = Conversations(
        system_tokens=1024,
        first=LogNormalTokens(8.8, 1.0, 64, 100_000),
        later=LogNormalTokens(7.6, 1.0, 16, 50_000),
        outputs=ExponentialTokens(343),
        mean_turns=3.0,
        num_open=150,
    )
    drawn = prompts.prompts(random.Random("conversation"), TRACE_BLOCK_TOKENS)
    times = PoissonArrivals(3.3).times(random.Random("conversation times"))
    return [TracedRequest(*pair) for pair in islice(zip(times, drawn, strict=False), TWIN_REQUESTS)]


def azure_trace(folder: Path | None) -> list[TracedRequest]:
    """Return both of Azure's traces of 2023 as one, or a synthetic twin: short prompts in bursts."""
    if folder is not None:
        both = [read_azure(folder / path, SHORT_BLOCK_TOKENS) for path in AZURE]
        return sorted((request for trace in both for request in trace), key=lambda request: request.at_s)
    prompts = SinglePrompts(LogNormalTokens(6.9, 0.9, 8, 8_000), ExponentialTokens(150))
    drawn = prompts.prompts(random.Random("azure"), SHORT_BLOCK_TOKENS)
    times = BurstArrivals(7.8, burst_factor=2.0, burst_s=5.0).times(random.Random("azure times"))
    return [TracedRequest(*pair) for pair in islice(zip(times, drawn, strict=False), TWIN_REQUESTS)]


def uncached_lengths(trace: Sequence[TracedRequest], slice_requests: int) -> list[int]:
    """Return how many tokens of each prompt a cache without limit would not have that is empty before each slice."""
    seen: set[BlockKey] = set()
    lengths = []
    for number, (_, prompt) in enumerate(trace):
        if number % slice_requests == 0:
            seen.clear()
        num_hits = next((n for n, key in enumerate(prompt.keys) if key not in seen), len(prompt.keys))
        seen.update(prompt.keys)
        lengths.append(max(1, prompt.num_tokens - num_hits * TRACE_BLOCK_TOKENS))
    return lengths
