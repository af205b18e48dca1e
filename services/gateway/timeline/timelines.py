"""The timelines of the requests that run and of the latest that have ended."""

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

from services.gateway.timeline.record import RequestTimeline
from services.gateway.timeline.traced import trace_request
from shared.errors import Internal, PrfaasError
from shared.telemetry.spans import current_span

MAX_ENDED = 1_000
MAX_BYTES = 16 << 20
"""Of those that have ended, about: whichever bound is met first, the one that ended first goes."""

CLIENT_GONE = 499


class Timelines:
    """Those that run are as many as the gateway serves at a time; those that have ended are bounded here."""

    def __init__(self, max_ended: int = MAX_ENDED, max_bytes: int = MAX_BYTES) -> None:
        self._max_ended = max_ended
        self._max_bytes = max_bytes
        self._numbers = count(1)
        self._running: dict[int, RequestTimeline] = {}
        self._ended: deque[tuple[RequestTimeline, int]] = deque()  # with the bytes that were counted
        self._by_id: dict[str, RequestTimeline] = {}
        self.num_bytes = 0
        self.num_taken = 0  # ever

    @property
    def num_running(self) -> int:
        return len(self._running)

    @contextmanager
    def follow(self, request_id: str, kind: str) -> Iterator[RequestTimeline]:
        """Keep a timeline of what happens inside, however it ends. A later request of the same id takes its name."""
        timeline = RequestTimeline(next(self._numbers), request_id, kind, current_span().trace_id)
        self._running[timeline.number] = self._by_id[request_id] = timeline
        self.num_taken += 1
        try:
            yield timeline
        except PrfaasError as error:
            _end(timeline, error.http_status, error.code)
            raise
        except (asyncio.CancelledError, ConnectionError):
            if timeline.is_answered:  # clients hang up once they have read the end, before the connection is done
                _end(timeline, 200, timeline.error)
            else:
                _end(timeline, CLIENT_GONE, "cancelled")
            raise
        except BaseException:
            _end(timeline, Internal.http_status, Internal.code)
            raise
        else:
            _end(timeline, 200, timeline.error)
        finally:
            del self._running[timeline.number]
            self._keep(timeline)
            trace_request(timeline)

    def get(self, request_id: str) -> RequestTimeline | None:
        """Return the timeline of the latest request of that id, if it is still known."""
        return self._by_id.get(request_id)

    def recent(self, limit: int, before: int | None = None) -> list[RequestTimeline]:
        """Return the latest requests of a number below `before`, newest first; those that run among them."""
        known = [*self._running.values(), *(timeline for timeline, _ in self._ended)]
        chosen = known if before is None else [timeline for timeline in known if timeline.number < before]
        return sorted(chosen, key=lambda timeline: -timeline.number)[:limit]

    def changed_since(self, at: float) -> list[RequestTimeline]:
        """Return those that run, and those that have ended since `at` of the monotonic clock, newest first."""
        found = list(self._running.values())
        for timeline, _ in reversed(self._ended):
            if timeline.ended_at is None or timeline.ended_at < at:
                break
            found.append(timeline)
        return sorted(found, key=lambda timeline: -timeline.number)

    def _keep(self, timeline: RequestTimeline) -> None:
        num_bytes = timeline.num_bytes
        self._ended.append((timeline, num_bytes))
        self.num_bytes += num_bytes
        while len(self._ended) > self._max_ended or self.num_bytes > self._max_bytes:
            gone, freed = self._ended.popleft()
            self.num_bytes -= freed
            if self._by_id.get(gone.request_id) is gone:
                del self._by_id[gone.request_id]


def _end(timeline: RequestTimeline, status: int, error: str | None) -> None:
    timeline.ended_at, timeline.status, timeline.error = time.monotonic(), status, error
    if timeline.state == "running":
        timeline.state = "cancelled" if status == CLIENT_GONE else "finished" if error is None else "failed"
