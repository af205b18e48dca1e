"""Events as a worker of the west would send them."""

import time
from typing import Any

from services.gateway.cluster.registry import Registry
from shared.bus.events import LoadEvent, MembershipEvent
from shared.ids import Datacenter, Epoch, WorkerId
from shared.step_profile import StepProfile


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


def idle(worker: str, **figures: Any) -> LoadEvent:
    """Return what an idle worker of a first epoch says; `figures` are fields of `LoadEvent`."""
    return LoadEvent(
        worker=WorkerId(worker),
        epoch=Epoch(1),
        running=0,
        waiting=0,
        kv_usage=0.0,
        speed_tokens_per_s=0.0,
        at_ms=0,
        **figures,
    )


def report_steps(registry: Registry, *workers: str, profile: StepProfile) -> None:
    """Have idle workers report what their steps take."""
    for worker in workers:
        registry.apply_load(idle(worker, step_profile=profile), time.monotonic())
