"""Events as a worker of the west would send them."""

from shared.bus.events import LoadEvent, MembershipEvent
from shared.ids import Datacenter, Epoch, WorkerId


def member(worker: str = "decode-west", epoch: int = 7) -> MembershipEvent:
    return MembershipEvent(
        worker=WorkerId(worker), role="decode", dc=Datacenter("west"), address="127.0.0.1:1", epoch=Epoch(epoch)
    )


def load(worker: str = "decode-west", epoch: int = 7, running: int = 1, waiting: int = 0) -> LoadEvent:
    return LoadEvent(
        worker=WorkerId(worker),
        epoch=Epoch(epoch),
        running=running,
        waiting=waiting,
        kv_usage=0.5,
        speed_tokens_per_s=30.0,
        at_ms=1,
    )
