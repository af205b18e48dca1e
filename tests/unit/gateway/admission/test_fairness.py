"""A tenant that floods and one that asks now and then, before a worker in virtual time."""

import math
import random
from collections.abc import Callable
from itertools import count

import pytest

from services.gateway.admission.window import DispatchWindow
from shared.tenant import Tenant
from tests.support.worker_model import ModelPrompt, ModelWorker

FLOODER, VICTIM = Tenant("flooder"), Tenant("victim")
VICTIM_S = 0.17
WINDOW_S = 0.5
NUM_ASKED = 400


def p95(values: list[float]) -> float:
    return sorted(values)[int(0.95 * len(values))]


def victims_ttft_s(
    flooders: int,
    flooder_s: float,
    *,
    victim: Tenant = VICTIM,
    window_s: float = WINDOW_S,
    step_s: float = 0.05,
    priority: Callable[[], int] = lambda: 0,
) -> float:
    """Return the victim's p95. It asks at random times, and flooders ask again as soon as they are answered."""
    worker = ModelWorker(DispatchWindow(window_s), step_s)
    arrivals, lengths = random.Random(1), random.Random(2)
    answered: list[ModelPrompt] = []

    def flood(_done: ModelPrompt | None = None, _now: float = 0.0) -> None:
        worker.ask(ModelPrompt(FLOODER, flooder_s * lengths.uniform(0.8, 1.2), flood, priority()))

    def ask() -> None:
        worker.ask(ModelPrompt(victim, VICTIM_S, lambda prompt, _now: answered.append(prompt)))
        worker.at(worker.now + arrivals.expovariate(0.5), ask)

    for _ in range(flooders):
        worker.at(0.0, flood)
    worker.at(5.0, ask)
    for until in count(100.0, 100.0):
        worker.run(until)
        if len(answered) >= NUM_ASKED:
            return p95([prompt.ttft_s for prompt in answered])
    raise AssertionError


ALONE_S = victims_ttft_s(0, 0.0)


@pytest.mark.parametrize("flooder_s", [0.02, 0.17, 0.35, 2.0])
def test_a_flood_raises_another_tenants_p95_by_half_at_most(flooder_s: float) -> None:
    assert victims_ttft_s(64, flooder_s) <= 1.5 * ALONE_S


@pytest.mark.parametrize("flooders", [8, 256])
def test_the_size_of_the_flood_does_not_matter(flooders: int) -> None:
    assert victims_ttft_s(flooders, 0.35) <= 1.5 * ALONE_S


def test_priorities_of_a_flood_do_not_matter() -> None:
    assert victims_ttft_s(64, 0.35, priority=lambda: -1000) <= 1.5 * ALONE_S


def test_within_one_tenant_or_without_a_gate_the_flood_goes_first() -> None:
    assert victims_ttft_s(64, 0.35, victim=FLOODER) > 20 * ALONE_S
    assert victims_ttft_s(64, 0.35, window_s=math.inf) > 20 * ALONE_S


def test_a_worker_that_finishes_what_it_has_begun_adds_one_prompt_of_the_flood() -> None:
    """The limit of what turns can do: a step is not interrupted."""
    assert victims_ttft_s(64, 0.35, step_s=10.0) <= ALONE_S + 1.2 * 0.35 + 0.01


@pytest.mark.parametrize("pause", [2.0, 3.0])
def test_a_tenant_that_uses_a_third_of_a_slow_worker_is_not_taken_for_a_flood(pause: float) -> None:
    """It waits as long as it computes, and pauses at random so many times as long."""
    worker, pauses, cost_s = ModelWorker(DispatchWindow(WINDOW_S), step_s=0.18), random.Random(1), 1.4
    ttfts_s: list[float] = []

    def flood(_done: ModelPrompt | None = None, _now: float = 0.0) -> None:
        worker.ask(ModelPrompt(FLOODER, 0.7, flood))

    def answered(prompt: ModelPrompt, _now: float) -> None:
        ttfts_s.append(prompt.ttft_s)
        worker.at(worker.now + pauses.expovariate(1 / (pause * cost_s)), ask)

    def ask() -> None:
        worker.ask(ModelPrompt(VICTIM, cost_s, answered))

    for _ in range(64):
        worker.at(0.0, flood)
    worker.at(5.0, ask)
    worker.run(2000.0)
    assert len(ttfts_s) > 300
    assert p95(ttfts_s) <= 1.5 * cost_s


def test_two_floods_get_equal_time() -> None:
    worker = ModelWorker(DispatchWindow(WINDOW_S))
    spent = {FLOODER: 0.0, VICTIM: 0.0}

    def flood(tenant: Tenant, cost_s: float) -> None:
        def again(prompt: ModelPrompt, _now: float) -> None:
            spent[prompt.tenant] += prompt.cost_s
            flood(tenant, cost_s)

        worker.ask(ModelPrompt(tenant, cost_s, again))

    for _ in range(32):
        worker.at(0.0, lambda: flood(FLOODER, 0.35))
        worker.at(0.0, lambda: flood(VICTIM, 0.05))
    worker.run(100.0)
    assert spent[FLOODER] == pytest.approx(spent[VICTIM], rel=0.05)
    assert sum(spent.values()) == pytest.approx(100.0, rel=0.02)  # nobody waits while there is room
