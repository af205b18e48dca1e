"""Parts of an engine around a tiny model: a way to a pool, a way to the pages, and what a decode worker is asked."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from services.decode.request import Generation
from shared.deadline import Deadline
from shared.engine.costs.steps import StepCosts
from shared.engine.loaded import LoadedModel
from shared.engine.pool_access import PoolAccess
from shared.engine.thread import WorkThread
from shared.engine.transfer import PageTransfer, TransferMetrics
from shared.kv.codec import Codec
from shared.measuring.fitting import OnlineFit
from shared.metrics import Metrics
from shared.pool.nodes import Pool
from shared.sampling.params import SamplingParams
from tests.support.waiting import LIMIT_S


def access_to(pool: Pool) -> PoolAccess:
    """Every request's pool is `pool`, whatever its plan names."""
    return PoolAccess((pool.address,), lambda _nodes, _tenant: pool)


@contextmanager
def transfer_of(model: LoadedModel, metrics: Metrics) -> Iterator[PageTransfer]:
    copier = WorkThread("copier")
    try:
        yield PageTransfer(model.kv, copier, TransferMetrics(metrics))
    finally:
        copier.close()


def step_costs(num_parts: int) -> StepCosts:
    """Return costs that know as many parts of a step, none of them from measurements."""
    return StepCosts(OnlineFit([1e-3, 1e-5, 1e-8, 1e-4, 1e-8][:num_parts]))


def generation(model: LoadedModel, token_ids: Sequence[int], max_tokens: int = 8, **changes: Any) -> Generation:
    """Return a greedy request that nothing is known of in any pool; `changes` are fields of `Generation`."""
    fields: dict[str, Any] = {
        "request_id": None,
        "token_ids": token_ids,
        "sampling": SamplingParams(max_tokens=max_tokens, temperature=0),
        "keys": model.keys(token_ids, ""),
        "root": model.root(""),
        "num_blocks": 0,
        "sources": (),
        "wait_s": 0.0,
        "codec": Codec.RAW,
        "deadline": Deadline.after(LIMIT_S),
    }
    return Generation(**{**fields, **changes})
