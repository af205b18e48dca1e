import random
import statistics
from itertools import islice, pairwise
from pathlib import Path

import pytest

from simulator.workload.arrivals import BurstArrivals, PoissonArrivals, SteppedArrivals
from simulator.workload.prompts import Conversations, FixedTokens, LogNormalTokens, SinglePrompts
from simulator.workload.traces import read_azure, read_mooncake
from simulator.workload.workload import DrawnRequests, TracedRequests

BLOCK = 64


def test_poisson_and_bursts_have_their_means() -> None:
    draw = random.Random(1)
    poisson = list(islice(PoissonArrivals(5.0).times(draw), 20_000))
    assert len(poisson) / poisson[-1] == pytest.approx(5.0, rel=0.03)
    bursts = list(islice(BurstArrivals(5.0, 3.0, 0.2, 10.0).times(draw), 60_000))
    assert len(bursts) / bursts[-1] == pytest.approx(5.0, rel=0.1)
    gaps = [b - a for a, b in pairwise(bursts)]
    assert statistics.stdev(gaps) > 1.2 * statistics.fmean(gaps)  # burstier than a Poisson process
    assert bursts == sorted(bursts)


def test_bursts_must_leave_something_for_the_time_between() -> None:
    with pytest.raises(ValueError, match="bursts"):
        BurstArrivals(5.0, burst_factor=6.0, burst_share=0.2)


def test_a_rate_that_changes() -> None:
    times = list(islice(SteppedArrivals(((0.0, 10.0), (100.0, 0.0), (200.0, 10.0))).times(random.Random(2)), 1500))
    assert not [at_s for at_s in times if 100 <= at_s < 200]
    assert sum(at_s < 100 for at_s in times) == pytest.approx(1000, rel=0.1)


def test_lengths_keep_their_limits() -> None:
    lengths = LogNormalTokens(5.0, 2.0, 100, 300)
    draw = random.Random(3)
    assert all(100 <= lengths.sample(draw) <= 300 for _ in range(500))


def test_a_turn_extends_the_last_one_of_its_conversation() -> None:
    source = Conversations(128, FixedTokens(200), FixedTokens(100), FixedTokens(50), mean_turns=5.0, num_open=3)
    prompts = list(islice(source.prompts(random.Random(4), BLOCK), 300))
    assert all(len(prompt.keys) == prompt.num_tokens // BLOCK for prompt in prompts)
    system = prompts[0].keys[:2]
    assert all(list(prompt.keys[:2]) == list(system) for prompt in prompts)
    known = {key for prompt in prompts[:100] for key in prompt.keys}
    assert any(prompt.keys[4] in known for prompt in prompts[100:200] if len(prompt.keys) > 4)


def test_requests_are_the_same_for_a_seed() -> None:
    single = SinglePrompts(FixedTokens(200), FixedTokens(5))
    source = DrawnRequests(PoissonArrivals(1.0), single, {"a": 1.0, "b": 3.0}, 400)
    first, again, other = (list(source.requests(seed, BLOCK)) for seed in (1, 1, 2))
    assert first == again != other
    assert sum(arrival.dc == "b" for arrival in first) == pytest.approx(300, rel=0.15)


def test_a_mooncake_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(
        '{"timestamp": 500, "input_length": 1100, "output_length": 7, "hash_ids": [0, 1, 2]}\n'
        '{"timestamp": 1500, "input_length": 1536, "output_length": 1, "hash_ids": [0, 1, 3]}\n'
    )
    first, second = read_mooncake(path)
    assert (first.at_s, second.at_s) == (0.0, 1.0)
    assert len(first.prompt.keys) == 2  # the third block is partial
    assert list(second.prompt.keys[:2]) == list(first.prompt.keys)
    apart = read_mooncake(path, reuse=False)
    assert not set(apart[0].prompt.keys) & set(apart[1].prompt.keys)
    assert len(read_mooncake(path, limit=1)) == 1
    arrivals = list(TracedRequests([first, second], {"a": 1.0}, speedup=2.0).requests(0, 512))
    assert [arrival.at_s for arrival in arrivals] == [0.0, 0.5]


def test_an_azure_trace(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,96,0\n"
    )
    first, second = read_azure(path, BLOCK)
    assert second.at_s == pytest.approx(4.314579)
    assert (first.prompt.num_tokens, first.prompt.num_output, len(first.prompt.keys)) == (374, 44, 5)
    assert second.prompt.num_output == 1


@pytest.mark.parametrize("text", ["", "{}\n", "no json\n"])
def test_a_file_that_is_no_trace(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match="trace"):
        read_mooncake(path)
    with pytest.raises(ValueError, match="trace"):
        read_azure(path, BLOCK)
