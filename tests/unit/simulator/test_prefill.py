import pytest

from shared.step_profile import StepProfile
from simulator.engines.prefill import SimulatedPrefill
from simulator.engines.work import PromptJob
from simulator.events import EventLoop

PROFILE = StepProfile(0.1, 0.001)


class Prefills:
    """A worker, and when each prompt was computed."""

    def __init__(self, step_tokens: int, prompts_per_step: int = 100) -> None:
        self.loop = EventLoop()
        self.worker = SimulatedPrefill(self.loop, PROFILE, step_tokens, prompts_per_step)
        self.done: dict[str, float] = {}
        self.chunks: list[tuple[int, int, float]] = []

    def add(self, name: str, end: int, first: int = 0) -> PromptJob:
        job = PromptJob(
            end,
            lambda: first,
            lambda: self.done.__setitem__(name, self.loop.now_s),
            lambda *chunk: self.chunks.append(chunk),
        )
        self.worker.add(job)
        return job


def test_chunks_are_told_when_their_step_begins() -> None:
    prefills = Prefills(step_tokens=100)
    prefills.add("a", 250)
    prefills.loop.run()
    assert [chunk[:2] for chunk in prefills.chunks] == [(0, 100), (100, 200), (200, 250)]
    assert [end_s for _, _, end_s in prefills.chunks] == pytest.approx([0.2, 0.4, 0.55])
    assert prefills.done == {"a": pytest.approx(PROFILE.prompt_s(0, 250, 100))}


def test_what_a_prompt_leaves_of_a_step_is_for_the_next() -> None:
    prefills = Prefills(step_tokens=100)
    prefills.add("a", 150)
    prefills.add("b", 50)
    prefills.loop.run()
    assert prefills.done["a"] == prefills.done["b"] == pytest.approx(0.4)


def test_one_prompt_after_another() -> None:
    prefills = Prefills(step_tokens=1000, prompts_per_step=1)
    for name in "abc":
        prefills.add(name, 100)
    prefills.loop.run()
    assert [prefills.done[name] for name in "abc"] == pytest.approx([0.2, 0.4, 0.6])
    assert prefills.worker.meter.total_busy_s == pytest.approx(0.6)


def test_a_cached_prefix_is_not_computed_and_a_whole_one_takes_no_time() -> None:
    prefills = Prefills(step_tokens=1000)
    prefills.add("part", 500, first=400)
    prefills.loop.run()
    prefills.add("whole", 500, first=500)
    prefills.loop.run()
    assert prefills.done == {"part": pytest.approx(0.2), "whole": pytest.approx(0.2)}


def test_a_withdrawn_prompt_is_not_computed_on() -> None:
    prefills = Prefills(step_tokens=100)
    gone = prefills.add("gone", 1000)
    prefills.add("next", 50)
    prefills.loop.at(0.1, gone.withdraw)
    prefills.loop.run()
    assert prefills.done == {"next": pytest.approx(0.2 + 0.15)}


def test_a_slow_worker_is_that_much_slower_and_a_lost_one_forgets() -> None:
    prefills = Prefills(step_tokens=100)
    prefills.worker.slowdown = 3.0
    prefills.add("a", 100)
    prefills.loop.run()
    assert prefills.done["a"] == pytest.approx(0.6)
    prefills.add("b", 100)
    prefills.worker.stop()
    prefills.loop.run()
    assert "b" not in prefills.done
    assert prefills.worker.num_waiting == prefills.worker.num_running == 0
