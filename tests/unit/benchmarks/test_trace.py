"""The trace replay: a trace is read as it is meant, and the product's store counts hits that can be used."""

import json
from pathlib import Path

from benchmarks.trace.replay import DENSE, HYBRID, UNLIMITED, Lru, Setup, replay
from benchmarks.trace.source import TraceRequest, load, synthetic
from services.cachepool.store.eviction import Eviction


def written(directory: Path, *chains: list[int]) -> list[TraceRequest]:
    rows = [json.dumps({"timestamp": 30_000 * i, "hash_ids": chain}) for i, chain in enumerate(chains)]
    (directory / "trace.jsonl").write_text("\n".join(rows))
    return load(directory / "trace.jsonl")


def test_only_blocks_behind_hits_hit(tmp_path: Path) -> None:
    requests = written(tmp_path, [0, 1, 2], [0, 1, 3], [4, 5])
    assert [request.at_s for request in requests] == [0.0, 30.0, 60.0]
    assert requests[0].keys[:2] == requests[1].keys[:2]
    outcome = replay(requests, DENSE, UNLIMITED, Eviction, Setup())
    assert (outcome.blocks, outcome.hits, outcome.crossed) == (8, 2, 0)
    assert outcome.cost == 8 + 7 / 16, "the block behind d others costs 1 + d / 16"
    assert outcome.saved == 2 + 1 / 16


def test_a_small_cache_forgets(tmp_path: Path) -> None:
    requests = written(tmp_path, [0, 1], [2, 3], [4, 5], [0, 1])
    for policy in (Lru, Eviction):
        assert replay(requests, DENSE, 2, policy, Setup()).hits == 0
        assert replay(requests, DENSE, 6, policy, Setup()).hits == 2


def test_a_window_is_missed_where_it_was_evicted(tmp_path: Path) -> None:
    requests = written(tmp_path, [0, 1, 2, 3], [9, 8, 7], [0, 1, 2, 3])
    assert replay(requests, HYBRID, 5, Lru, Setup()).hits == 2, "the end of the chain made the room"
    assert replay(requests, HYBRID, 5, Eviction, Setup()).hits == 4, "windows of inner blocks did"
    shorter = [*requests[:2], requests[2]._replace(keys=requests[2].keys[:2])]
    assert replay(shorter, HYBRID, 5, Eviction, Setup()).hits == 0, "nobody can resume where windows are gone"


def test_two_datacenters_pool_what_they_have(tmp_path: Path) -> None:
    requests = written(tmp_path, *[[0, 1, 2]] * 8)
    apart = replay(requests, DENSE, 12, Eviction, Setup(2, "random"))
    together = replay(requests, DENSE, 12, Eviction, Setup(2, "random", pooled=True))
    assert (apart.hits, apart.crossed) == (18, 0)
    assert (together.hits, together.crossed) == (21, 3)


def test_the_synthetic_trace_is_the_same_each_time() -> None:
    requests = synthetic(50)
    assert requests == synthetic(50)
    assert len(requests) == 50
    assert requests == sorted(requests)
