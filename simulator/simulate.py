"""From a scenario to its outcome."""

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle

import numpy as np

from shared.ids import BlockKey
from simulator.caches.placements import SharedPlacements
from simulator.caches.pool import SimulatedPool
from simulator.events import EventLoop
from simulator.gateways.bus import SimulatedBus
from simulator.gateways.gateway import RoutedGateway
from simulator.gateways.routes import Dispatcher
from simulator.network.fabric import Fabric
from simulator.outcome import Outcome, RequestRow
from simulator.places import Places
from simulator.request.life import RequestLife
from simulator.scenario import Scenario, WorkerChange
from simulator.seats import Engines
from simulator.workload.workload import PromptArrival

MakeDispatcher = Callable[[Places, str], Dispatcher]
"""Makes a gateway's routing, given the gateway's datacenter."""


def simulate(scenario: Scenario, dispatch: MakeDispatcher | None = None) -> Outcome:
    """Run a scenario to its end. `dispatch` replaces the real routing, for validation.

    Raises ValueError for a scenario that names what it does not have.
    """
    return Simulation(scenario, dispatch).run()


class Simulation:
    """One scenario under way. Whoever wants to look into it between events may build it apart from `run`."""

    def __init__(self, scenario: Scenario, dispatch: MakeDispatcher | None = None) -> None:
        _check(scenario)
        self.scenario = scenario
        self.loop = loop = EventLoop()
        pools = {
            dc.name: SimulatedPool(f"{dc.name}-pool", dc.name, scenario.kv.stored_layout, dc.pool_blocks, loop)
            for dc in scenario.datacenters
        }
        fabric = Fabric(scenario.links, loop, scenario.seed, scenario.stall_s)
        self.places = Places(scenario, loop, Engines(scenario, loop), pools, fabric)
        self.rows: list[RequestRow] = []
        self._num_open = 0
        self._arrivals = scenario.requests.requests(scenario.seed, scenario.kv.block_tokens)
        self.gateways: Mapping[str, Sequence[Dispatcher]] = {}
        self._bus: SimulatedBus | None = None
        if dispatch is not None:
            self.gateways = {dc.name: [dispatch(self.places, dc.name)] for dc in scenario.datacenters if dc.gateways}
        else:
            self._build_gateways()
        self._turns = {dc: cycle(gateways) for dc, gateways in self.gateways.items()}

    def run(self) -> Outcome:
        """Return what came of it."""
        if self._bus is not None:
            self._bus.begin()
        for change in self.scenario.changes:
            self._plan_change(change)
        self._await_sample()
        self._await_arrival(self._arrivals)
        with _rare_collections():
            self.loop.run(self.scenario.until_s)
        return self._outcome()

    def warm(self, dc: str, chains: Iterable[Sequence[BlockKey]]) -> None:
        """Have the blocks of these prompts in a datacenter's pool before the first request."""
        with _rare_collections():
            for chain in chains:
                self.places.pools[dc].put(chain)

    def _build_gateways(self) -> None:
        scenario, places = self.scenario, self.places
        placements = SharedPlacements(scenario.kv.layout, self.loop)
        gateways = {
            dc.name: [
                RoutedGateway(places, dc.name, number, scenario.policy(), placements.index)
                for number in range(dc.gateways)
            ]
            for dc in scenario.datacenters
            if dc.gateways
        }
        self.gateways = gateways
        self._bus = SimulatedBus(places, gateways, placements)

    def _await_arrival(self, arrivals: Iterator[PromptArrival]) -> None:
        arrival = next(arrivals, None)
        if arrival is None:
            if not self._num_open:
                self.loop.stop()
            return
        self._num_open += 1  # so that nothing stops before it is here
        self.loop.at(arrival.at_s, lambda: self._arrive(arrival))

    def _arrive(self, arrival: PromptArrival) -> None:
        prompt = arrival.prompt
        row = RequestRow(len(self.rows), self.loop.now_s, arrival.dc, prompt.num_tokens, prompt.num_output)
        self.rows.append(row)
        self._await_arrival(self._arrivals)
        life = RequestLife(self.places, next(self._turns[arrival.dc]), prompt, row, self._over)
        self.loop.after(self.scenario.calls.plan_s, life.begin)

    def _over(self) -> None:
        self._num_open -= 1
        if not self._num_open:
            self.loop.stop()

    def _await_sample(self) -> None:
        every_s = self.scenario.sample_every_s

        def sample() -> None:
            self.places.fabric.sample(every_s)
            self.loop.after(every_s, sample)

        self.loop.after(every_s, sample)

    def _plan_change(self, change: WorkerChange) -> None:
        engines = self.places.engines

        def act() -> None:
            if change.slowdown is None:
                engines.lose(change.worker)
            elif engines.bring(change.worker, change.slowdown) and self._bus is not None:
                self._bus.announce(engines.seats[change.worker])

        self.loop.at(change.at_s, act)

    def _outcome(self) -> Outcome:
        rows = self.rows

        def floats(name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
            return np.fromiter((getattr(row, name) for row in rows), np.float64, len(rows))

        def counts(name: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
            return np.fromiter((getattr(row, name) for row in rows), np.int64, len(rows))

        return Outcome(
            arrival_s=floats("arrival_s"),
            dc=tuple(row.dc for row in rows),
            prompt_tokens=counts("prompt_tokens"),
            output_tokens=counts("output_tokens"),
            uncached_tokens=counts("uncached_tokens"),
            kind=tuple(row.kind for row in rows),
            prefill_dc=tuple(row.prefill_dc for row in rows),
            ttft_s=floats("started_s") - floats("arrival_s"),
            ttft_forecast_s=floats("forecast_s"),
            time_per_output_token_s=floats("time_per_output_token_s"),
            finished_s=floats("finished_s"),
            rejected=np.fromiter((row.rejected for row in rows), np.bool_, len(rows)),
            rescued=np.fromiter((row.rescued for row in rows), np.bool_, len(rows)),
            attempts=counts("attempts"),
            links=self.places.fabric.histories(),
            crossed_bytes=self.places.fabric.crossed_bytes(),
            slo=self.scenario.slo,
            num_events=self.loop.num_events,
            end_s=self.loop.now_s,
        )


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Have the collector of cycles look seldom: among millions of records of blocks it finds next to nothing."""
    usual = gc.get_threshold()
    gc.set_threshold(200_000, 50, 1000)
    try:
        yield
    finally:
        gc.set_threshold(*usual)


def _check(scenario: Scenario) -> None:
    """Raise ValueError for a datacenter or an engine that is not there."""
    dcs = {dc.name for dc in scenario.datacenters}
    named = {group.dc for group in scenario.engines} | {
        end for link in scenario.links for end in (link.from_dc, link.to_dc)
    }
    if unknown := named - dcs:
        raise ValueError(f"no datacenter is called {', '.join(sorted(unknown))}")
    if not any(group.role == "decode" for group in scenario.engines):
        raise ValueError("a scenario needs a decode engine")
