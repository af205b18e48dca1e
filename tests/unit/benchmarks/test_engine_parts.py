"""What the sections of the engine benchmark compute with: percentiles, steps of a running batch, kernel time, texts."""

import asyncio
import ctypes

import pytest

from benchmarks.engine import overhead
from benchmarks.engine.batch import RunningBatch
from benchmarks.engine.node import Answer, LoopLag, NoPool, percentile
from benchmarks.engine.overhead import Clock, timed_kernels
from benchmarks.quality import REFERENCE, VARIANTS, checks, negative_log_likelihood
from shared.deadline import Deadline
from shared.kv.entries import BlockEntries
from shared.pool.lanes.lane import Arrived
from tests.support.tiny import tiny_model


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(i) for i in range(1, 201)]
    assert percentile(values, 99) == 198
    assert percentile(values, 50) == 100
    assert percentile([7.0], 99) == 7
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 50)


async def test_a_batch_reports_the_steps_that_were_asked_for() -> None:
    answer = Answer(0.0)
    batch = RunningBatch([answer], answer.arrived)

    async def tokens() -> None:
        for at in (1.0, 2.0, 4.0, 7.0, 11.0):
            answer.token_at_s.append(at)
            answer.arrived.set()
            await asyncio.sleep(0)

    answer.token_at_s.append(0.5)
    mark = batch.mark()
    task = asyncio.create_task(tokens())
    assert await batch.steps(3) == [1.0, 2.0, 3.0]
    await task
    assert batch.since(mark) == [0.5, 1.0, 2.0, 3.0, 4.0]


async def test_lag_is_what_blocks_the_loop() -> None:
    async with LoopLag(interval_s=0.001) as lag:
        await asyncio.sleep(0.005)
        before = len(lag.seconds)
        _block(0.03)
        await asyncio.sleep(0.005)
    assert max(lag.seconds[before:]) > 0.02


def _block(seconds: float) -> None:
    ctypes.CDLL(None).usleep(int(seconds * 1e6))


async def test_no_pool_gives_and_takes_nothing() -> None:
    pool, model = NoPool(), tiny_model("llama", 4)
    keys = model.keys(list(range(1, 129)), "")
    blocks = [BlockEntries(key, model.layout.all_layers) for key in keys]
    async for arrived in pool.fetch(model.layout, blocks, [], 1.0, Deadline.after(1)):
        assert arrived == Arrived([], blocks)
    async with pool.publish(Deadline.after(1)) as publication:
        assert (await publication.open(model.layout, blocks)).granted == [0, 0]


def test_kernel_time_counts_our_functions_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "KERNEL_PREFIX", "usl")
    plain = ctypes.CDLL.__getitem__
    with timed_kernels() as clock:
        library = ctypes.CDLL(None)
        library.getpid()
        assert clock == Clock()
        library.usleep.restype = ctypes.c_int
        assert library.usleep(2000) == 0
    assert clock.calls == 1
    assert clock.seconds >= 0.002
    assert ctypes.CDLL.__getitem__ is plain


def test_perplexity_does_not_depend_on_the_steps() -> None:
    model = tiny_model("gemma3")
    ids = [(7 * i) % 199 for i in range(150)]
    whole = negative_log_likelihood(model, ids, 512)
    assert negative_log_likelihood(model, ids, 16) == pytest.approx(whole, rel=1e-4)
    assert model.kv.held == 0


def test_quality_is_checked_against_bfloat16() -> None:
    found = dict.fromkeys(VARIANTS, 20.0) | {VARIANTS[2]: 20.3}
    assert [(check.value, check.met) for check in checks("m", found)] == [(1.0, True), (1.015, False)]
    assert VARIANTS[2].weight_dtype == "int8"
    assert REFERENCE in found
