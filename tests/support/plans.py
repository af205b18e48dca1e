"""Workers and plans that name them, as the router would make them for a prompt of three blocks."""

from services.gateway.cluster.workers import Member
from services.gateway.routing.plan import Forecast, Plan
from shared.ids import Datacenter, WorkerId
from shared.kv.codec import Codec

NUM_BLOCKS = 3


def worker(name: str, dc: str = "east") -> Member:
    """A worker with a pool of its own."""
    return Member(WorkerId(name), Datacenter(dc), f"{name}:1", f"pool-of-{name}:1")


def plan(num_prefill: int = 1, *, decode: str = "decode-0", prefill_nodes: tuple[str, ...] = ()) -> Plan:
    """A plan for decode in the west and prefill in the east: by `prefill-0`, or a spare."""
    workers = [worker(f"prefill-{number}") for number in range(num_prefill)]
    return Plan(
        kind="remote" if workers else "decode_only",
        home_dc=Datacenter("west"),
        decode=worker(decode, "west"),
        prefill=workers[0] if workers else None,
        prefill_spares=tuple(workers[1:]),
        num_blocks=NUM_BLOCKS,
        usable_blocks=0,
        decode_nodes=(),
        prefill_nodes=prefill_nodes,
        decode_sources=(),
        prefill_sources=(),
        prefill_codec=Codec.RAW,
        decode_codec=Codec.RAW,
        forecast=Forecast(1.0, 1.0, 0.01),
    )
