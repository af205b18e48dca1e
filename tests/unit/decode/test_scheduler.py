"""The policy: who is admitted, who gives way, and that in the end everybody finishes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from services.decode.scheduler import SHORT_HEAD_START_S, DecodeScheduler, Rank
from shared.engine.urgency import Urgency

PAGE = 4


@dataclass(eq=False)
class Job:
    """A request as the policy sees it; `num_tokens` grows while it runs."""

    rank: Rank
    num_tokens: int
    to_generate: int = 1
    deadline_s: float = 100.0
    num_pages: int = 0
    is_short: bool = False

    @property
    def urgency(self) -> Urgency:
        return Urgency(self.rank.arrival, self.deadline_s, self.rank.priority)


@dataclass
class Memory:
    """Pages without content. What is given up returns at once, or after `delay` steps."""

    num_pages: int
    delay: int = 0
    step: int = 0
    given_up: list[Job] = field(default_factory=list)
    holders: list[Job] = field(default_factory=list)  # now or once
    _returning: list[tuple[int, int]] = field(default_factory=list)  # (step, pages)

    @property
    def free(self) -> int:
        return self.num_pages

    @property
    def returning(self) -> bool:
        return bool(self._returning)

    def reserve(self, job: Job, num_growing: int, /) -> bool:
        assert job.num_pages == 0
        needed = _pages(job.num_tokens + 1)
        return needed + num_growing <= self.num_pages and self._take(job, needed)

    def extend(self, job: Job, /) -> bool:
        assert job.num_pages > 0
        return self._take(job, _pages(job.num_tokens) - job.num_pages)

    def give_up(self, job: Job, /) -> None:
        self.given_up.append(job)
        self.release(job)

    def release(self, job: Job) -> None:
        if self.delay:
            self._returning.append((self.step + self.delay, job.num_pages))
        else:
            self.num_pages += job.num_pages
        job.num_pages = 0

    def would_fit(self, job: Job, others: Sequence[Job], /) -> bool:
        total = self.num_pages + sum(pages for _, pages in self._returning)
        return _pages(job.num_tokens + 1) <= total + sum(o.num_pages for o in self.holders if o not in others)

    def tick(self) -> None:
        self.step += 1
        self.num_pages += sum(pages for at, pages in self._returning if at <= self.step)
        self._returning = [(at, pages) for at, pages in self._returning if at > self.step]

    def _take(self, job: Job, count: int) -> bool:
        if count > self.num_pages:
            return False
        self.num_pages -= max(0, count)
        job.num_pages += max(0, count)
        if job not in self.holders:
            self.holders.append(job)
        return True


def _pages(num_tokens: int) -> int:
    return -(-num_tokens // PAGE)


def job(arrival: int, num_tokens: int = PAGE, priority: int = 0, deadline_s: float = 100.0) -> Job:
    return Job(Rank(priority, arrival), num_tokens, deadline_s=deadline_s)


def scheduler_of(num_pages: int, *jobs: Job, max_batch: int = 8) -> tuple[DecodeScheduler[Job], Memory]:
    memory = Memory(num_pages)
    scheduler: DecodeScheduler[Job] = DecodeScheduler(memory, max_batch)
    for one in jobs:
        scheduler.add(one)
    return scheduler, memory


def run_tails(scheduler: DecodeScheduler[Job]) -> None:
    for one in list(scheduler.tails):
        scheduler.join(one)


def test_admission_is_by_priority_then_arrival() -> None:
    late, early, urgent = job(2), job(1), job(3, priority=-1)
    scheduler, _ = scheduler_of(100, late, early, urgent)
    scheduler.schedule()
    assert scheduler.tails == [urgent, early, late]


def test_a_long_prompt_is_not_overtaken() -> None:
    first, long, short = job(0, 3 * PAGE), job(1, 7 * PAGE), job(2, 1)
    scheduler, memory = scheduler_of(8, first, long, short)
    scheduler.schedule()
    assert scheduler.tails == [first]
    assert scheduler.waiting == [long, short]
    scheduler.remove(first)
    memory.release(first)
    scheduler.schedule()
    assert scheduler.tails == [long]


def test_admission_leaves_a_page_for_each_that_grows() -> None:
    old = [job(0), job(1)]
    scheduler, memory = scheduler_of(7, *old)
    scheduler.schedule()
    run_tails(scheduler)
    new = job(2)
    scheduler.add(new)
    scheduler.schedule()
    assert scheduler.waiting == [new]  # two pages would be enough, one would be left
    memory.num_pages += 1
    scheduler.schedule()
    assert scheduler.tails == [new]


def test_max_batch_bounds_who_holds_pages() -> None:
    scheduler, _ = scheduler_of(100, *(job(i) for i in range(5)), max_batch=3)
    scheduler.schedule()
    assert (scheduler.num_holding, len(scheduler.waiting)) == (3, 2)


def test_the_last_of_the_lowest_priority_gives_way() -> None:
    jobs = [job(0, priority=1), job(1), job(2, priority=1), job(3)]
    scheduler, memory = scheduler_of(8, *jobs)  # two pages each
    scheduler.schedule()
    run_tails(scheduler)
    jobs[1].num_tokens = 2 * PAGE + 1
    batch = scheduler.schedule()
    assert memory.given_up == [jobs[2]]
    assert set(batch) == {jobs[0], jobs[1], jobs[3]}
    assert scheduler.waiting == [jobs[2]]


def test_the_needy_one_may_be_the_one_that_gives_way() -> None:
    old, new = job(0), job(1)
    scheduler, memory = scheduler_of(4, old, new)
    scheduler.schedule()
    run_tails(scheduler)
    new.num_tokens = 2 * PAGE + 1
    assert scheduler.schedule() == [old]
    assert memory.given_up == [new]


def test_nobody_else_gives_way_while_pages_are_on_their_way_back() -> None:
    jobs = [job(i) for i in range(3)]
    scheduler, memory = scheduler_of(6, *jobs)
    memory.delay = 2
    scheduler.schedule()
    run_tails(scheduler)
    jobs[0].num_tokens = 2 * PAGE + 1
    for _ in range(2):
        assert scheduler.schedule() == [jobs[1]]
        assert memory.given_up == [jobs[2]]
        memory.tick()
    assert scheduler.schedule() == jobs[:2]


def test_a_waiting_request_preempts_lower_priorities_only() -> None:
    low, normal = job(0, priority=1), job(1)
    scheduler, memory = scheduler_of(4, low, normal)
    scheduler.schedule()
    same, urgent = job(2), job(3, priority=-1)
    scheduler.add(same)
    scheduler.schedule()
    assert memory.given_up == [low]
    assert scheduler.tails == [normal, same]
    scheduler.add(urgent)
    scheduler.schedule()
    assert memory.given_up == [low, same]
    assert scheduler.tails == [normal, urgent]


def test_nobody_gives_way_in_vain() -> None:
    low, normal = job(0, priority=1), job(1, 5 * PAGE)
    scheduler, memory = scheduler_of(8, low, normal)
    scheduler.schedule()
    scheduler.add(job(2, 3 * PAGE))  # would need more than `low` has
    scheduler.schedule()
    assert memory.given_up == []
    assert scheduler.num_holding == 2


def test_a_preempted_request_keeps_its_place() -> None:
    jobs = [job(i) for i in range(3)]
    scheduler, _ = scheduler_of(6, *jobs)
    scheduler.schedule()
    run_tails(scheduler)
    scheduler.add(job(9))
    jobs[0].num_tokens = 2 * PAGE + 1
    scheduler.schedule()
    assert scheduler.waiting[0] is jobs[2]
    assert [j.rank.arrival for j in scheduler.waiting] == [2, 9]


ARRIVALS = st.lists(
    st.tuples(
        st.integers(0, 3),  # steps since the one before
        st.integers(1, 40),  # tokens of the prompt
        st.integers(1, 30),  # tokens to generate
        st.integers(-1, 1),  # priority
        st.sampled_from([None, None, None, 5, 15]),  # steps until it is cancelled
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=300)
@given(
    arrivals=ARRIVALS,
    spare_pages=st.integers(0, 12),
    delay=st.integers(0, 3),
    tail_steps=st.integers(0, 3),
    max_batch=st.integers(1, 6),
)
def test_every_request_finishes(
    arrivals: list[Any], spare_pages: int, delay: int, tail_steps: int, max_batch: int
) -> None:
    most = max(_pages(prompt + answer) for _, prompt, answer, _, _ in arrivals)
    memory = Memory(most + spare_pages, delay)
    total = memory.num_pages
    scheduler: DecodeScheduler[Job] = DecodeScheduler(memory, max_batch)
    pending = []
    step = 0
    for arrival, (gap, prompt, answer, priority, cancelled_after) in enumerate(arrivals):
        step += gap
        pending.append((step, Job(Rank(priority, arrival), prompt, answer), cancelled_after))
    cancellations = {job: at + after for at, job, after in pending if after is not None}
    live: list[Job] = []
    tails: dict[Job, int] = {}
    work = sum(job.to_generate + tail_steps + delay + 2 for _, job, _ in pending)
    for now in range(step + 20 + work * (len(pending) + 2)):
        for at, one, _ in list(pending):
            if at <= now:
                pending.pop(0)
                live.append(one)
                scheduler.add(one)
        for one in [one for one in live if cancellations.get(one) == now]:
            _end(one, live, scheduler, memory)
        if not live and not pending:
            break
        num_given_up = len(memory.given_up)
        batch = scheduler.schedule()
        _check(scheduler, memory, total, batch)
        first = min(live, key=lambda one: one.rank, default=None)
        assert first not in memory.given_up[num_given_up:]
        if not memory.returning and len(memory.given_up) == num_given_up:
            assert first not in scheduler.waiting
        for one in list(scheduler.tails):
            tails[one] = tails.get(one, tail_steps) - 1
            if tails[one] < 0:
                del tails[one]
                scheduler.join(one)
                _generate(one, live, scheduler, memory)
        for one in scheduler.waiting:
            tails.pop(one, None)
        for one in batch:
            _generate(one, live, scheduler, memory)
        memory.tick()
    assert not live
    assert not pending


def _generate(one: Job, live: list[Job], scheduler: DecodeScheduler[Job], memory: Memory) -> None:
    one.num_tokens += 1
    one.to_generate -= 1
    if not one.to_generate:
        _end(one, live, scheduler, memory)


def _end(one: Job, live: list[Job], scheduler: DecodeScheduler[Job], memory: Memory) -> None:
    scheduler.remove(one)
    live.remove(one)
    memory.release(one)


def _check(scheduler: DecodeScheduler[Job], memory: Memory, total: int, batch: list[Job]) -> None:
    holding = scheduler.tails + scheduler.running
    held = sum(one.num_pages for one in holding)
    assert held + memory.free + sum(pages for _, pages in memory._returning) == total
    assert all(one.num_pages == 0 for one in scheduler.waiting)
    assert all(one.num_pages >= _pages(one.num_tokens) for one in batch)
    assert scheduler.waiting == sorted(scheduler.waiting, key=lambda one: one.rank)
    for one in scheduler.waiting:
        for other in holding:
            if one.rank.priority == other.rank.priority:
                assert other.rank.arrival < one.rank.arrival


def test_who_is_put_back_waits_in_its_place_and_is_admitted_again() -> None:
    first, second, third = jobs = [job(0), job(1), job(2)]
    scheduler, memory = scheduler_of(5, *jobs)  # room for two
    scheduler.schedule()
    memory.release(first)
    scheduler.put_back(first)
    assert (scheduler.tails, scheduler.waiting) == ([second], [first, third])
    scheduler.schedule()
    assert scheduler.tails == [second, first]


def test_turns_go_by_urgency() -> None:
    jobs = [job(0), job(1, deadline_s=10), job(2, priority=-1), job(3)]
    scheduler, _ = scheduler_of(100, *jobs)
    scheduler.schedule()
    assert scheduler.turns() == [jobs[1], jobs[2], jobs[0], jobs[3]]


def test_a_short_tail_goes_before_long_ones_that_came_up_to_a_minute_before_it() -> None:
    before = int(SHORT_HEAD_START_S)
    jobs = [job(0, deadline_s=100.0), job(3, deadline_s=103.0), job(before + 2, deadline_s=before + 102.0)]
    jobs[-1].is_short = True
    scheduler, _ = scheduler_of(100, *jobs)
    scheduler.schedule()
    assert scheduler.turns() == [jobs[0], jobs[2], jobs[1]]


def test_a_short_tail_that_stands_back_has_no_head_start() -> None:
    jobs = [job(0), job(1, priority=1), job(2)]
    jobs[1].is_short = True
    scheduler, _ = scheduler_of(100, *jobs)
    scheduler.schedule()
    assert scheduler.turns() == [jobs[0], jobs[2], jobs[1]]
