"""Where things are: the engines, pools and links that all requests share."""

from collections.abc import Mapping
from dataclasses import dataclass

from simulator.caches.pool import SimulatedPool
from simulator.events import EventLoop
from simulator.kv import KvSize
from simulator.network.fabric import Fabric
from simulator.scenario import Scenario
from simulator.seats import Engines, EngineSeat


@dataclass(frozen=True, slots=True)
class Places:
    """Handed to whatever carries out a part of a request."""

    scenario: Scenario
    loop: EventLoop
    engines: Engines
    pools: Mapping[str, SimulatedPool]  # by datacenter
    fabric: Fabric

    @property
    def kv(self) -> KvSize:
        return self.scenario.kv

    def seat(self, worker: str) -> EngineSeat:
        return self.engines.seats[worker]

    def dc_of(self, worker: str) -> str:
        return self.engines.seats[worker].group.dc

    def blocks_bytes(self, num_blocks: int) -> float:
        """Return the bytes of so many cached blocks, the state behind the last of them included."""
        return self.kv.bytes_of(num_blocks * self.kv.block_tokens)
