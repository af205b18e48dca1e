"""Datacenters, workers, pools and links as JSON. Pure."""

from collections.abc import Iterable
from typing import Any, Literal

from services.gateway.cluster.view import KnownProcess
from shared.step_profile import StepProfile

Json = dict[str, Any]
ProcessState = Literal["ready", "suspect", "gone"]

SUSPECT_AFTER_S = 1.5
"""Three missed load events. Plans go on using a worker that is silent for longer, up to `fleet.STALE_AFTER_S`; whoever
watches sees sooner that something is wrong."""

SHOWN_GONE_S = 120.0
"""How long a process that is gone is still shown."""


def cluster_of(processes: Iterable[KnownProcess], home: str) -> Json:
    """Return what was heard of all processes, those of home first.

    `state` is *ready*; *suspect*: it is silent, or a call or a connection to it has failed; or *gone*: it has left, or
    was silent for so long that nothing is sent there.
    """
    shown = [process for process in processes if process.silent_s <= SHOWN_GONE_S]
    names = sorted({process.event.dc for process in shown}, key=lambda dc: (dc != home, dc))
    return {
        "home": home,
        "datacenters": names,
        "workers": [_worker(process) for process in shown if process.event.role != "cachepool"],
        "pools": [_pool(process) for process in shown if process.event.role == "cachepool"],
        "links": _links(shown),
    }


def state_of(process: KnownProcess) -> tuple[ProcessState, str | None]:
    """Return a process's state, and why it is not ready."""
    if process.event.left:
        return "gone", "has left"
    if process.problem is not None:
        return ("gone" if process.problem.startswith("silent") else "suspect"), process.problem
    if process.silent_s > SUSPECT_AFTER_S:
        return "suspect", f"silent for {process.silent_s:.1f} s"
    return "ready", None


def _process(process: KnownProcess) -> Json:
    state, reason = state_of(process)
    event = process.event
    return {
        "id": event.worker,
        "dc": event.dc,
        "state": state,
        "reason": reason,
        "silent_s": round(process.silent_s, 1),
        "kv_usage": None if process.load is None else round(process.load.kv_usage, 4),
    }


def _worker(process: KnownProcess) -> Json:
    load = process.load
    found = {**_process(process), "role": process.event.role, "kv_tokens": process.event.capacity or None}
    if load is None:
        return found
    return {
        **found,
        "running": load.running,
        "waiting": load.waiting,
        "queued_s": round(load.queued_s, 3),
        "queued_tokens": load.queued_tokens,
        "tokens_per_s": round(load.speed_tokens_per_s, 1),
        "busy": round(load.busy, 3),
        "profile": None if load.step_profile is None else _profile(load.step_profile),
    }


def _profile(profile: StepProfile) -> Json:
    return {**profile._asdict(), "is_measured": profile.num_steps >= 1}


def _pool(process: KnownProcess) -> Json:
    num_suspects = 0 if process.load is None else len(process.load.suspects)
    return {**_process(process), "bytes": process.event.capacity or None, "num_suspects": num_suspects}


def _links(processes: Iterable[KnownProcess]) -> list[Json]:
    """Return each way between two datacenters, the receiving pool's nodes together.

    `crossed_bytes` counts since those pools' start: a reader makes a rate of two of them.
    """
    links: dict[tuple[str, str], Json] = {}
    for process in processes:
        for link in () if process.load is None else process.load.links:
            ends = (link.peer_dc, process.event.dc)
            new = {"from": ends[0], "to": ends[1], "goodput_bytes_per_s": 0.0, "backlog_bytes": 0, "crossed_bytes": 0}
            found = links.setdefault(ends, {**new, "round_trip_s": 0.0})
            found["goodput_bytes_per_s"] += link.goodput_bytes_per_s
            found["backlog_bytes"] += link.backlog_bytes
            found["crossed_bytes"] += link.crossed_bytes
            found["round_trip_s"] = max(found["round_trip_s"], link.round_trip_s)
    for found in links.values():
        for name in ("goodput_bytes_per_s", "round_trip_s"):
            found[name] = found[name] or None  # not known
    return [links[ends] for ends in sorted(links)]
