"""The engines of one role as a table: a row a worker, a column a figure, so that a policy scores thousands at once."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.bus.events import LoadEvent, MembershipEvent
from shared.ids import Datacenter, WorkerId
from shared.step_profile import StepProfile

WORKER = np.dtype(
    [
        ("number", np.intp),  # which worker: an index into `Workers.members`
        ("dc", np.intp),  # an index into the view's `dcs`
        ("requests", np.float64),  # running and waiting, or as many as this gateway has there
        ("running", np.float64),
        ("queued_s", np.float64),  # what the prompts there still take the model
        ("queued_tokens", np.float64),  # of prompts, still to be computed
        ("context_tokens", np.float64),  # of running requests together
        ("free_tokens", np.float64),  # KV memory; infinite where nothing was said of it
        ("kv_usage", np.float64),  # 0 to 1
        ("max_batch", np.float64),  # requests that run at a time; infinite where nothing was said of it
        ("answer_tokens", np.float64),  # mean length of the latest answers
        ("is_measured", np.bool_),  # whether the next five are the worker's own
        ("base_s", np.float64),  # `StepProfile`
        ("token_s", np.float64),
        ("pair_s", np.float64),
        ("row_s", np.float64),
        ("context_s", np.float64),
        ("profile_steps", np.float64),  # measured steps that these five rest on; below 1 they are a prior
        ("step_tokens", np.float64),  # most prompt tokens of a step
        ("busy", np.float64),  # share of the last seconds that prompts added to steps, 0 to 1
        ("arrivals_per_s", np.float64),
        ("seen_busy", np.float64),  # share of this gateway's latest requests that found prompts waiting there
        ("hand_over_bytes_per_s", np.float64),  # between the worker and its pool
    ]
)

Rows = NDArray[Any]
"""An array of `WORKER`."""

PRIOR = StepProfile(base_s=0.01, token_s=2e-4, pair_s=1e-8, row_s=1e-3, context_s=1e-7)
"""Of a worker that has said nothing yet, or never will: a small model on a few cores, so that nothing is free."""

ANSWER_TOKENS = 400.0
"""What chats answer, about; until a worker tells."""

STEP_TOKENS = 512
HAND_OVER_BYTES_PER_S = 1e9
"""What is assumed until a worker tells: within the range of what hosts of all kinds were measured to do."""


@dataclass(frozen=True, slots=True)
class Member:
    """A worker that requests may be sent to."""

    worker: WorkerId
    dc: Datacenter
    address: str
    pool_address: str
    codec_threads: int = 1  # that encode and decode its entries


@dataclass(frozen=True, slots=True, eq=False)
class Workers:
    """Some workers of one role. The arrays are read only while the registry does not change: keep none of them."""

    members: Sequence[Member]  # by number; more than there are rows
    rows: Rows  # [n] of `WORKER`

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Member]:
        return (self.members[number] for number in self.rows["number"].tolist())

    def __getitem__(self, row: int) -> Member:
        return self.members[int(self.rows["number"][row])]

    def where(self, chosen: NDArray[np.bool_]) -> "Workers":
        """Return the workers of the chosen rows."""
        return self if chosen.all() else Workers(self.members, self.rows.take(chosen.nonzero()[0]))

    def without(self, names: Iterable[WorkerId]) -> "Workers":
        """Return all workers but these."""
        unwanted = frozenset(names)
        if not unwanted:
            return self
        return self.where(np.array([member.worker not in unwanted for member in self], bool))

    def one_in(self, dc: int) -> Member | None:
        """Return a worker of the datacenter of that number; None if it has none."""
        rows = (self.rows["dc"] == dc).nonzero()[0]
        return self[int(rows[0])] if len(rows) else None

    def row_of(self, worker: WorkerId) -> int | None:
        """Return the row of a worker; None if it is not among these."""
        return next((row for row, member in enumerate(self) if member.worker == worker), None)


NOBODY = Workers((), np.zeros(0, WORKER))


def new_row(number: int, dc: int) -> Rows:
    """Return the row of a worker that has not reported yet: `[1]` of `WORKER`."""
    row = np.zeros(1, WORKER)
    row["number"], row["dc"], row["free_tokens"] = number, dc, np.inf
    row["max_batch"], row["answer_tokens"] = np.inf, ANSWER_TOKENS
    row["step_tokens"], row["hand_over_bytes_per_s"] = STEP_TOKENS, HAND_OVER_BYTES_PER_S
    _set_profile(row, PRIOR)
    return row


def take_report(row: Rows, report: LoadEvent, membership: MembershipEvent) -> None:
    """Write what a worker says of itself into its row."""
    row["requests"], row["running"] = report.running + report.waiting, report.running
    row["queued_s"], row["queued_tokens"] = report.queued_s, report.queued_tokens
    row["context_tokens"], row["kv_usage"] = report.context_tokens, report.kv_usage
    if membership.capacity:
        row["free_tokens"] = membership.capacity * (1 - report.kv_usage)
    row["max_batch"], row["answer_tokens"] = report.max_batch or np.inf, report.answer_tokens or ANSWER_TOKENS
    row["busy"], row["arrivals_per_s"] = report.busy, report.arrivals_per_s
    row["step_tokens"] = report.step_tokens or STEP_TOKENS
    row["hand_over_bytes_per_s"] = report.hand_over_bytes_per_s or HAND_OVER_BYTES_PER_S
    if report.step_profile is not None:
        row["is_measured"] = report.step_profile.num_steps >= 1
        _set_profile(row, report.step_profile)


def _set_profile(row: Rows, profile: StepProfile) -> None:
    for name in ("base_s", "token_s", "pair_s", "row_s", "context_s"):
        row[name] = getattr(profile, name)
    row["profile_steps"] = profile.num_steps


def member_of(event: MembershipEvent) -> Member:
    return Member(event.worker, event.dc, event.address, event.pool_address, event.codec_threads)
