"""The emission benchmark's figures, from counters that are known."""

import asyncio

from benchmarks.emission import COUNTERS, Worker, observed


class Counting(Worker):
    """A worker that computes nothing: each prompt counts as two steps."""

    def __init__(self) -> None:
        self.totals = dict.fromkeys(COUNTERS, 100.0)  # what was there before
        self.at_once = self.most_at_once = 0

    async def prefill(self, num_tokens: int) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.03)
        self.at_once -= 1
        spent = (num_tokens, 2, 3, 0.02, 0.002, 0.019, 0.001)
        for name, value in zip(COUNTERS, spent, strict=True):
            self.totals[name] += value

    def counted(self) -> dict[str, float]:
        return dict(self.totals)


async def test_shares_are_of_what_was_counted_meanwhile() -> None:
    worker = Counting()
    row = await observed("w", worker, [[100, 200], [300]])
    assert worker.most_at_once == 2
    assert (row["work"], row["prompts_per_step"], row["step_ms"], row["gap_ms"]) == ("w", 1.5, 10.0, 1.0)
    assert row["exposed_share"] == 0.05
    assert isinstance(row["tokens_per_s"], float)
    assert 0 < row["tokens_per_s"] < 600 / 0.06
