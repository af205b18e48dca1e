"""One request's timeline while it is written. Times are those of the monotonic clock; None: not yet, or never."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from services.gateway.timeline.tokens import TokenTimes
from shared.timings import DecodeTimings, LayerTimes, PrefillTimings

RequestState = Literal["running", "finished", "failed", "cancelled"]

MAX_CHOICES = 4
"""Choices of a request whose phases are kept; what the others cost is in the request's sums."""


class WorkerSite(NamedTuple):
    """A worker, and where it is."""

    worker: str
    dc: str


class WayNote(NamedTuple):
    """A way to serve a prompt that routing has compared."""

    kind: str
    site: WorkerSite  # who computes what no cache has
    cached_blocks: int  # leading blocks that it takes from caches
    cost_s: float  # by which ways are compared
    ttft_s: float  # until the first token, as predicted
    is_chosen: bool


class SourceNote(NamedTuple):
    """Blocks that come from the pool of a datacenter."""

    first: int
    end: int
    dc: str


class PlanNote(NamedTuple):
    """A plan as people are shown it."""

    kind: str
    home_dc: str
    decode: WorkerSite
    prefill: WorkerSite | None
    num_blocks: int  # that decode counts on
    usable_blocks: int  # of these, held by some pool when the plan was made
    decode_sources: tuple[SourceNote, ...]
    prefill_sources: tuple[SourceNote, ...]
    codec: str
    forecast_ttft_s: float
    forecast_time_per_output_token_s: float
    alone_s: float | None  # until decode's first token, without anything from elsewhere
    ways: tuple[WayNote, ...]  # that were compared, the cheapest first; none where a policy compares no costs


@dataclass(slots=True)
class PrefillNote:
    """One call of a prefill worker."""

    site: WorkerSite
    sent_at: float = field(default_factory=time.monotonic)
    known_at: float | None = None  # it has said what exists already
    reused_blocks: int = 0
    computed_tokens: int = 0
    timings: PrefillTimings | None = None  # the worker's own; since it took the call
    ended_at: float | None = None
    error: str | None = None

    def heard(self, computed_tokens: int, num_blocks_done: int, timings: PrefillTimings | None) -> None:
        """Note one of the worker's messages."""
        if self.known_at is None:
            self.known_at, self.reused_blocks = time.monotonic(), num_blocks_done
        self.computed_tokens = computed_tokens
        self.timings = timings or self.timings

    def ended(self, error: str | None = None) -> None:
        """Note the call's end; the first one counts."""
        if self.ended_at is None:
            self.ended_at, self.error = time.monotonic(), error


@dataclass(slots=True)
class AttemptNote:
    """One plan as it was carried out."""

    plan: PlanNote
    begun_at: float = field(default_factory=time.monotonic)
    prefills: list[PrefillNote] = field(default_factory=list)  # as many as a plan is tried on
    decode_sent_at: float | None = None
    decode_timings: DecodeTimings | None = None  # the worker's own; since it took the call
    computed_prompt_tokens: int = 0  # by decode
    rescued_at: float | None = None  # decode computes what is late
    first_token_at: float | None = None
    ended_at: float | None = None
    error: str | None = None

    def prefill_sent(self, site: WorkerSite) -> PrefillNote:
        """Note one more call of a prefill worker."""
        note = PrefillNote(site)
        self.prefills.append(note)
        return note

    def decode_sent(self) -> None:
        self.decode_sent_at = time.monotonic()

    def rescued(self) -> None:
        self.rescued_at = time.monotonic()

    def first_token(self, at: float, computed_prompt_tokens: int, timings: DecodeTimings | None) -> None:
        """Note decode's first message with tokens."""
        self.first_token_at, self.computed_prompt_tokens, self.decode_timings = at, computed_prompt_tokens, timings

    def ended(self, error: str | None = None) -> None:
        self.ended_at, self.error = time.monotonic(), error


@dataclass(slots=True)
class ChoiceNote:
    """One choice, from its first plan to its last token."""

    begun_at: float | None = None
    planned_at: float | None = None  # for the first time
    passed_at: float | None = None  # the gate
    has_waited: bool = False  # for its turn
    attempts: list[AttemptNote] = field(default_factory=list)  # as many as a request is tried on
    tokens: TokenTimes = field(default_factory=TokenTimes)
    finish_reason: str | None = None

    def begun(self) -> None:
        self.begun_at = time.monotonic()

    def planned(self) -> None:
        self.planned_at = time.monotonic()

    def passed(self, *, has_waited: bool) -> None:
        """Note that the request has its turn."""
        self.passed_at, self.has_waited = time.monotonic(), has_waited

    def carried_out(self, plan: PlanNote) -> AttemptNote:
        """Note a plan that is being carried out."""
        note = AttemptNote(plan)
        self.attempts.append(note)
        return note


@dataclass(slots=True)
class RequestTimeline:
    """One HTTP request. `num_*_tokens` are those of `usage`, once it has ended well."""

    number: int  # requests are numbered as they come
    request_id: str
    kind: str  # chat or completion
    trace_id: str | None = None  # None: it is in no trace
    began_at: float = field(default_factory=time.monotonic)
    began_at_unix_s: float = field(default_factory=time.time)
    body_read_at: float | None = None
    prepared_at: float | None = None  # rendered, tokenised, hashed
    is_streamed: bool = False
    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0
    num_cached_tokens: int | None = None
    num_choices: int = 0
    choices: list[ChoiceNote] = field(default_factory=list)
    state: RequestState = "running"
    status: int | None = None  # of HTTP
    error: str | None = None  # its code
    ended_at: float | None = None
    is_answered: bool = False  # all choices have ended, and their text was written

    def body_read(self) -> None:
        self.body_read_at = time.monotonic()

    def prepared(self, num_prompt_tokens: int, num_choices: int, *, is_streamed: bool) -> None:
        """Note what the request asks for."""
        self.prepared_at = time.monotonic()
        self.num_prompt_tokens, self.num_choices, self.is_streamed = num_prompt_tokens, num_choices, is_streamed

    def choice(self) -> ChoiceNote:
        """Return the note of one more choice; it is kept if there is room."""
        note = ChoiceNote()
        if len(self.choices) < MAX_CHOICES:
            self.choices.append(note)
        return note

    def used(self, completion_tokens: int, cached_tokens: int) -> None:
        """Note the final usage."""
        self.num_completion_tokens, self.num_cached_tokens = completion_tokens, cached_tokens

    def answered(self) -> None:
        """Note that the client was sent all there is to say."""
        self.is_answered = True

    def failed(self, error: str) -> None:
        """Note that the answer broke off after its status was out."""
        self.state, self.error = "failed", error

    @property
    def num_bytes(self) -> int:
        """What it takes of memory, about."""
        attempts = [attempt for choice in self.choices for attempt in choice.attempts]
        return 1_000 + 2_000 * len(self.choices) + sum(map(_attempt_bytes, attempts))


def _attempt_bytes(attempt: AttemptNote) -> int:
    times: list[LayerTimes] = [] if attempt.decode_timings is None else [attempt.decode_timings.landed]
    for prefill in attempt.prefills:
        if prefill.timings is not None:
            times += prefill.timings.computed, prefill.timings.sent
    plan = attempt.plan
    num_notes = len(plan.ways) + len(plan.decode_sources) + len(plan.prefill_sources)
    return 1_000 + 500 * len(attempt.prefills) + 300 * num_notes + sum(map(_layer_bytes, times))


def _layer_bytes(times: LayerTimes) -> int:
    numbers: Sequence[float] = times.first_s
    return 2 * 32 * len(numbers)
