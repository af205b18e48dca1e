"""How many bytes a prompt's KV has. Pure."""

from dataclasses import dataclass
from functools import cached_property

from shared.kv.layout import KvLayout, LayerSpec


@dataclass(frozen=True)
class KvSize:
    """How much KV a prompt has, in which blocks pools and routers count it, and in which pieces it travels.

    `fixed_bytes` cross a link once for each prompt, as the state of linear attention does; the store and the router
    know of the blocks alone. `layers` may be fewer than a model has: each stands for some of them, and each step's KV
    becomes available in so many pieces while the step runs.
    """

    bytes_per_token: float
    block_tokens: int = 512
    fixed_bytes: float = 0.0
    layers: int = 8

    @cached_property
    def layout(self) -> KvLayout:
        """The layout that routers know: full attention, with the bytes of a token rounded to 4 for each layer."""
        return self._layout(self.layers)

    @cached_property
    def stored_layout(self) -> KvLayout:
        """The layout of pools: as many bytes as one layer, so that a block is one entry."""
        return self._layout(1)

    def _layout(self, num_layers: int) -> KvLayout:
        head_dim = max(1, round(self.bytes_per_token / 4 / num_layers))
        return KvLayout((LayerSpec(None, 1, head_dim),) * num_layers, "bfloat16", self.block_tokens)

    def bytes_of(self, num_tokens: float) -> float:
        """Return the bytes of so many tokens that are computed together; none for none."""
        return self.fixed_bytes + self.bytes_per_token * num_tokens if num_tokens > 0 else 0.0
