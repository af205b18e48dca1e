"""Which prompts share a step, and how far each goes in it. Pure: it decides, an engine acts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

R = TypeVar("R")

MIN_TAIL_TOKENS = 16
"""What a decode step computes of waiting prompts at least, whatever it costs its batch."""


class Offer(NamedTuple, Generic[R]):
    """A prompt that could go on now.

    Its next `num_tokens` tokens are through the layers before `next_layer` and may run up to `open_layers`: what these
    see in later layers has not landed yet. With all layers open, and none done, it is a row range that can be cut.
    """

    request: R
    num_tokens: int
    next_layer: int
    open_layers: int


class RowRange(NamedTuple, Generic[R]):
    """A prompt's next tokens, through all layers."""

    request: R
    num_tokens: int


class LayerPass(NamedTuple, Generic[R]):
    """Prompts whose next tokens are at one layer: they go through some layers together."""

    first_layer: int
    end_layer: int
    requests: Sequence[R]


@dataclass
class Packed(Generic[R]):
    """What a step computes of prompts."""

    rows: list[RowRange[R]] = field(default_factory=list)
    passes: list[LayerPass[R]] = field(default_factory=list)


def pack(offers: Iterable[Offer[R]], num_tokens: int, num_layers: int) -> Packed[R]:
    """Fill a step of `num_tokens` tokens through `num_layers` layers; `offers` stand in the order of their turns.

    Each offer gets what those before it have left, so that only the last one is cut: a row range in tokens, what waits
    for layers in layers. The first gets at least one token, or one layer of its tokens, however small the step is.
    """
    left = num_tokens * num_layers  # tokens through one layer
    packed = Packed[R]()
    gated: dict[int, list[tuple[R, int]]] = {}
    for offer in offers:
        is_first = not packed.rows and not gated
        if offer.next_layer == 0 and offer.open_layers == num_layers:
            taken = min(offer.num_tokens, max(left // num_layers, is_first))
            if not taken:
                break
            packed.rows.append(RowRange(offer.request, taken))
            left -= taken * num_layers
        else:
            layers = min(offer.open_layers - offer.next_layer, max(left // offer.num_tokens, is_first))
            if not layers:
                break
            gated.setdefault(offer.next_layer, []).append((offer.request, layers))
            left -= layers * offer.num_tokens
    for first, few in gated.items():
        end = first + min(layers for _, layers in few)
        packed.passes.append(LayerPass(first, end, [request for request, _ in few]))
    return packed
