"""The prefill scheduler: steps of packed chunks, most urgent first, every job once and to its end."""

import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from services.prefill.scheduler import Chunk, Job, PrefillScheduler
from shared.engine.urgency import AGEING, MAX_PRIORITY_S, Urgency

BUDGET = 512
BLOCK = 64


def job(first: int, end: int, deadline_s: float = 100.0, arrived_s: float = 0.0, priority: int = 0) -> Job:
    return Job(first, end, Urgency(arrived_s, deadline_s, priority))


def scheduler_of(*jobs: Job) -> PrefillScheduler[Job]:
    scheduler = PrefillScheduler[Job](BUDGET)
    for each in jobs:
        scheduler.add(each)
    return scheduler


def steps(scheduler: PrefillScheduler[Job]) -> Iterator[list[Chunk[Job]]]:
    while chunks := scheduler.next_step():
        yield chunks
        for chunk in chunks:
            scheduler.finished(chunk)


def test_a_long_job_is_cut_into_chunks_that_cover_it_once() -> None:
    scheduler = scheduler_of(job(64, 1300))
    assert [(c.first, c.end) for [c] in steps(scheduler)] == [(64, 576), (576, 1088), (1088, 1300)]
    assert len(scheduler) == 0


def test_short_jobs_share_a_step_up_to_the_budget() -> None:
    jobs = [job(0, 128), job(64, 256), job(0, 192), job(0, 64)]
    packed = list(steps(scheduler_of(*jobs)))
    assert [[(c.job, c.first, c.end) for c in step] for step in packed] == [
        [(jobs[0], 0, 128), (jobs[1], 64, 256), (jobs[2], 0, 192)],
        [(jobs[3], 0, 64)],
    ]


def test_what_a_long_jobs_end_leaves_of_a_step_is_filled() -> None:
    long, other = job(0, 640), job(0, 1024, deadline_s=101)
    shape = [[(c.first, c.end) for c in step] for step in steps(scheduler_of(long, other))]
    assert shape == [[(0, 512)], [(512, 640), (0, 384)], [(384, 896)], [(896, 1024)]]


def test_an_urgent_job_goes_between_the_chunks_of_a_long_one() -> None:
    long = job(0, 1536)
    scheduler = scheduler_of(long)
    order = steps(scheduler)
    next(order)
    urgent = job(0, 512, deadline_s=10)
    scheduler.add(urgent)
    assert [[c.job for c in step] for step in order] == [[urgent], [long], [long]]


def test_equals_are_served_in_order_of_arrival() -> None:
    jobs = [job(0, 512) for _ in range(4)]
    assert [c.job for [c] in steps(scheduler_of(*jobs))] == jobs


def test_a_job_at_its_limit_is_passed_over_until_it_rises() -> None:
    held, other = job(0, 1024, deadline_s=1), job(0, 512)
    limit = 128
    held.limit = lambda: limit
    scheduler = scheduler_of(held, other)
    assert [[(c.job, c.end) for c in step] for step in steps(scheduler)] == [
        [(held, 128), (other, 384)],
        [(other, 512)],
    ]
    assert len(scheduler) == 1
    limit = 4096
    assert [c.end for [c] in steps(scheduler)] == [640, 1024]


def test_asking_twice_gives_the_same_step() -> None:
    scheduler = scheduler_of(job(0, 1024))
    assert scheduler.next_step() == scheduler.next_step()


def test_a_removed_job_is_not_continued() -> None:
    gone, other = job(0, 1024), job(0, 64)
    scheduler = scheduler_of(gone, other)
    [chunk] = scheduler.next_step()
    assert not scheduler.finished(chunk)
    scheduler.remove(gone)
    scheduler.remove(gone)
    assert [c.job for [c] in steps(scheduler)] == [other]


def test_a_patient_job_is_reached_while_urgent_ones_keep_coming() -> None:
    """One step a second; an urgent prompt that fills it arrives each second."""
    patient = job(0, 512, deadline_s=600, priority=5)
    scheduler = scheduler_of(patient)
    bound_s = (600 - 10 + 2 * MAX_PRIORITY_S) / (1 + AGEING)
    for second in range(int(bound_s) + 3):
        scheduler.add(job(0, 512, deadline_s=second + 10, arrived_s=second))
        [chunk] = scheduler.next_step()
        scheduler.finished(chunk)
        if chunk.job is patient:
            return
    pytest.fail(f"not reached within {bound_s:.0f} s")


def test_jobs_that_stand_back_fill_no_step_of_others_and_have_small_ones() -> None:
    flood, other = job(0, 512, priority=10), job(0, 640, arrived_s=1.0)
    scheduler = PrefillScheduler[Job](BUDGET, yielding_tokens=128)
    scheduler.add(flood)
    shapes = []
    for number, step in enumerate(steps(scheduler)):
        shapes.append([(chunk.job, chunk.first, chunk.end) for chunk in step])
        if number == 0:
            scheduler.add(other)
    assert shapes[:3] == [[(flood, 0, 128)], [(other, 0, 512)], [(other, 512, 640)]]
    assert [chunk.num_tokens for chunk in scheduler.next_step()] == []
    assert shapes[3:] == [[(flood, first, first + 128)] for first in (128, 256, 384)]


SIZES = st.integers(1, 40)


@given(st.lists(st.tuples(SIZES, st.floats(0, 1000), st.floats(0, 1000), st.integers(-20, 20)), max_size=20))
def test_every_job_is_computed_once_within_the_budget(shapes: list[tuple[int, float, float, int]]) -> None:
    jobs = [job(0, size * BLOCK, deadline, arrived, level) for size, deadline, arrived, level in shapes]
    done = dict.fromkeys(jobs, 0)
    for step in steps(scheduler_of(*jobs)):
        assert 0 < (num_tokens := sum(chunk.num_tokens for chunk in step)) <= BUDGET
        sharing = [each for each in jobs if step[0].job.urgency.stands_back or not each.urgency.stands_back]
        left = sum(each.end - done[each] for each in sharing)
        assert num_tokens == min(BUDGET, left), "no step was left partly empty while there was work"
        for chunk in step:
            assert chunk.first == done[chunk.job]
            done[chunk.job] = chunk.end
    assert done == {each: each.end for each in jobs}


class SchedulerStates(RuleBasedStateMachine):
    """Jobs come, go, are held back and let go again in any order, in the middle of steps, too."""

    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = PrefillScheduler[Job](BUDGET)
        self.live: dict[Job, int] = {}
        self.limits: dict[Job, int] = {}

    @rule(target=jobs, size=SIZES, deadline=st.floats(0, 100), arrived=st.floats(0, 100), level=st.integers(-3, 3))
    def add(self, size: int, deadline: float, arrived: float, level: int) -> Job:
        new = job(0, size * BLOCK, deadline, arrived, level)
        new.limit = lambda: self.limits.get(new, sys.maxsize)
        self.scheduler.add(new)
        self.live[new] = 0
        return new

    @rule(chosen=jobs, limit=st.integers(0, 40))
    def limit(self, chosen: Job, limit: int) -> None:
        self.limits[chosen] = limit * BLOCK

    @rule(chosen=consumes(jobs))
    def remove(self, chosen: Job) -> None:
        self.scheduler.remove(chosen)
        self.live.pop(chosen, None)

    @rule()
    def step(self) -> None:
        chunks = self.scheduler.next_step()
        runnable = [each for each, done in self.live.items() if done < each.limit()]
        assert bool(chunks) == bool(runnable)
        assert len({chunk.job for chunk in chunks}) == len(chunks), "two chunks of one job"
        room = BUDGET - sum(chunk.num_tokens for chunk in chunks)
        assert room >= 0
        for chunk in chunks:
            assert chunk.job in runnable
            assert chunk.first == self.live[chunk.job] < chunk.end <= min(chunk.job.end, chunk.job.limit())
        taken = [chunk.job for chunk in chunks]
        sharing = [each for each in runnable if taken[0].urgency.stands_back or not each.urgency.stands_back]
        passed_over = [each.urgency.rank for each in sharing if each not in taken]
        if passed_over:
            assert not room
            assert min(passed_over) >= max(chunk.job.urgency.rank for chunk in chunks)
        for chunk in chunks:
            if self.scheduler.finished(chunk):
                assert chunk.end == chunk.job.end
                del self.live[chunk.job]
            else:
                self.live[chunk.job] = chunk.end

    @invariant()
    def holds_what_is_not_done(self) -> None:
        assert set(self.scheduler.jobs) == set(self.live)


TestSchedulerStates = SchedulerStates.TestCase
