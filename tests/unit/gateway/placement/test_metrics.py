"""What the index does not know is seen from outside."""

from services.gateway.placement.index import PlacementIndex
from services.gateway.placement.metrics import IndexCollector
from shared.ids import WorkerId
from shared.kv.layout import KvLayout, LayerSpec
from shared.kv.resume import needed_groups
from shared.metrics import Metrics
from tests.support.placement import key, packed, take_snapshot


def test_certainty_by_holder() -> None:
    layout = KvLayout((LayerSpec(None, 1, 2),), "float32")
    index, metrics = PlacementIndex(layout), Metrics()
    metrics.registry.register(IndexCollector(index, lambda: 9.0))
    for name in ("pool-east", "pool-west"):
        index.doubt(WorkerId(name))
    take_snapshot(index, WorkerId("pool-east"), 1, 4, packed([(0, 1), (1, 1)]))
    index.assume(WorkerId("pool-east"), [key(1), key(2)], needed_groups(layout, 2), 10.0)

    def seen(name: str, holder: str) -> float | None:
        return metrics.registry.get_sample_value(f"prfaas:placement_{name}", {"holder": holder})

    assert [seen(name, "pool-east") for name in ("blocks", "assumed_blocks", "stale", "silent_seconds")] == [
        2,
        1,
        0,
        None,
    ]
    assert [seen(name, "pool-west") for name in ("blocks", "assumed_blocks", "stale")] == [0, 0, 1]
    assert metrics.registry.get_sample_value("prfaas:placement_index_bytes") == index.nbytes > 0
