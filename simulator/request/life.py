"""One request from its plan to its last token, over as many attempts as losses of decode workers make it need."""

from collections.abc import Callable

from shared.errors import NoWorker, Overloaded
from shared.ids import WorkerId
from simulator.engines.decode import DecodeRequest
from simulator.gateways.routes import Dispatcher, RouteQuery, SimRoute
from simulator.outcome import RequestRow
from simulator.places import Places
from simulator.request.delivery import KvDelivery
from simulator.request.prefilling import PromptPrefill
from simulator.request.tail import GatedTail
from simulator.workload.prompts import PromptDraw, extended


class RequestLife:
    """Carries out one plan after another. `on_over` is called once: finished, rejected, or failed too often."""

    def __init__(
        self,
        places: Places,
        dispatcher: Dispatcher,
        prompt: PromptDraw,
        row: RequestRow,
        on_over: Callable[[], None],
    ) -> None:
        self._places = places
        self._dispatcher = dispatcher
        self._prompt = prompt
        self._row = row
        self._on_over = on_over
        self._num_sent = 0  # tokens of the answer that exist
        self._excluded: set[str] = set()

    def begin(self) -> None:
        """Ask for a plan and set out."""
        prompt, row = self._prompt, self._row
        num_tokens, num_output = prompt.num_tokens + self._num_sent, prompt.num_output - self._num_sent
        # What was sent before a loss is a part of the prompt now.
        keys = extended(prompt.keys, num_tokens // self._places.kv.block_tokens, f"{row.number}")
        query = RouteQuery(num_tokens, num_output, keys, frozenset(self._excluded))
        try:
            route = self._dispatcher.route(query)
        except (NoWorker, Overloaded):
            row.rejected = row.attempts == 0
            self._on_over()
            return
        row.attempts += 1
        row.kind, row.prefill_dc = route.kind, self._places.dc_of(route.prefill) if route.prefill else ""
        if row.attempts == 1:
            row.forecast_s = route.ttft_forecast_s
        self._dispatcher.began(route, query)
        RequestAttempt(self, self._places, self._dispatcher, query, route).begin()

    def computed(self, num_tokens: int) -> None:
        """Count prompt tokens that an engine computes."""
        self._row.uncached_tokens += num_tokens

    def rescued(self) -> None:
        """Decode computes what is late."""
        self._row.rescued = True

    def started(self) -> None:
        """The first token of an attempt exists."""
        if self._num_sent == 0:
            self._row.started_s = self._places.loop.now_s

    def ended(self) -> None:
        """The last token exists."""
        self._row.finished_s = self._places.loop.now_s
        self._on_over()

    def failed(self, worker: str, num_sent: int) -> None:
        """A decode worker is lost that has sent so many tokens: go on with another, if this was not the last try."""
        self._num_sent += num_sent
        self._excluded.add(worker)
        if self._row.attempts < self._places.scenario.max_attempts:
            self.begin()
        else:
            self._on_over()


class RequestAttempt:
    """One plan carried out: prefill and delivery at once, then decode."""

    def __init__(
        self, life: RequestLife, places: Places, dispatcher: Dispatcher, query: RouteQuery, route: SimRoute
    ) -> None:
        self._life = life
        self._places = places
        self._dispatcher = dispatcher
        self._query = query
        self._route = route
        self._home = places.dc_of(route.decode)
        self._seat = places.seat(route.decode)
        maker = places.dc_of(route.prefill) if route.prefill else None
        num_blocks = min(len(query.keys), route.ready_tokens // places.kv.block_tokens)
        self._keys = query.keys[:num_blocks]
        self._delivery = KvDelivery(places, self._home, maker, self._keys, self._delivered)
        self._prefill: PromptPrefill | None = None
        self._request: DecodeRequest | None = None
        self._epoch = self._seat.epoch
        self._begun_s = places.loop.now_s
        self._has_started = False
        self._num_stored = 0  # leading blocks that home's pool has for this request
        self._tail: GatedTail | None = None

    def begin(self) -> None:
        route = self._route
        if not self._seat.is_present:
            self._lost()
            return
        self._seat.on_lost[self._lost] = None
        if route.prefill is not None:
            self._prefill = PromptPrefill(
                self._places,
                route,
                self._keys,
                self._delivery,
                self._prefilled,
                self._dispatcher.lost,
                self._first_layer_landed,
            )
        self._delivery.begin(route.decode_sources)
        if self._prefill is not None:
            self._prefill.begin()
        self._delivery.wait_for(route.patience_s)

    def _first_layer_landed(self) -> None:
        """Begin with the prompt's end, which decode computes layer by layer behind what lands."""
        if self._seat.is_present and self._route.ready_tokens < self._query.num_tokens:
            self._tail = GatedTail(self._places, self._seat, self._route.ready_tokens, self._query.num_tokens)

    def _prefilled(self, num_computed: int) -> None:
        self._prefill = None
        self._life.computed(num_computed)
        self._dispatcher.prefilled(self._route)

    def _delivered(self) -> None:
        """All that will come has come: read it into the worker's pages, then decode."""
        delivery, kv, pool = self._delivery, self._places.kv, self._places.pools[self._home]
        if delivery.is_late:
            self._life.rescued()
        if self._prefill is not None and delivery.has_failed:  # computed in vain: nobody waits for it any more
            self._prefill.withdraw()
            self._prefilled(0)
        num_blocks = delivery.ready_blocks
        pool.put(self._keys[:num_blocks])
        self._num_stored = num_blocks
        num_read = num_blocks if self._route.prefill is None else 0  # else it was read as it came
        on_device = self._seat.device.longest(self._keys[:num_read])
        num_read -= on_device.num_blocks if on_device is not None else 0
        delay_s = num_read * kv.block_tokens * kv.bytes_per_token / self._seat.group.hand_over_bytes_per_s
        called_s = self._begun_s + self._places.scenario.calls.call_s
        self._places.loop.at(max(self._places.loop.now_s + delay_s, called_s), self._join)

    def _join(self) -> None:
        if self._seat.epoch != self._epoch or not self._seat.is_present:
            return  # lost meanwhile, and told so
        query = self._query
        if self._tail is not None:
            self._tail.landed()
        self._request = DecodeRequest(query.num_tokens, query.num_output, self._first, self._started, self._ended)
        self._request.expected_first = self._ready_tokens()
        self._seat.decode.add(self._request)

    def _ready_tokens(self) -> int:
        """Return how many leading tokens need not be computed; the prompt's last one always is."""
        kv = self._places.kv
        is_whole = not self._delivery.has_failed and self._delivery.ready_blocks == len(self._keys)
        ready = self._route.ready_tokens if is_whole else self._delivery.ready_blocks * kv.block_tokens
        here = self._places.pools[self._home].num_leading(self._query.keys) * kv.block_tokens
        return min(self._query.num_tokens - 1, max(ready, here))

    def _first(self) -> int:
        first = self._ready_tokens()
        self._life.computed(self._query.num_tokens - first)
        return first if self._tail is None else self._tail.first_left(first)

    def _started(self) -> None:
        self._has_started = True
        self._seat.device.note(self._query.keys, WorkerId(self._seat.name))
        ttft_s = None if self._delivery.is_late else self._places.loop.now_s - self._begun_s
        self._dispatcher.first_token(self._route, self._query, ttft_s)
        pool = self._places.pools[self._home]
        if len(self._query.keys) > self._num_stored:  # decode publishes the full blocks that it computed
            pool.put(self._query.keys)
        self._life.started()

    def _ended(self) -> None:
        self._leave()
        self._life.ended()

    def _lost(self) -> None:
        num_sent = 0
        if self._request is not None and self._has_started:
            num_sent = self._request.num_output - self._request.num_left
        self._leave()
        self._dispatcher.lost(self._route.decode)
        self._life.failed(self._route.decode, num_sent)

    def _leave(self) -> None:
        self._seat.on_lost.pop(self._lost, None)
        self._delivery.abandon()
        if self._prefill is not None:
            self._prefill.withdraw()
            self._prefilled(0)
        self._dispatcher.ended(self._route)
