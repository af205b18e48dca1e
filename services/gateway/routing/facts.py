"""What follows from a request, placements and members before anything is decided: computed once for each plan."""

from collections.abc import Mapping
from dataclasses import dataclass

from services.gateway.cluster.registry import Member, RegistryView
from services.gateway.routing.datacenters import Credit, credits_by_dc
from services.gateway.routing.plan import RequestFacts
from shared.ids import Datacenter
from shared.kv.hashing import num_prefix_blocks
from shared.kv.layout import KvLayout
from shared.kv.resume import longest_resume, no_groups


@dataclass(frozen=True, slots=True)
class Facts:
    """The state of the world for one request, as seen from the decode worker that serves it."""

    request: RequestFacts
    decode: Member
    block_tokens: int
    suspects: frozenset[str]  # addresses of pool nodes that decode's pool pulls nothing from
    credits: Mapping[Datacenter, Credit]  # what each datacenter's pool can be counted on for, suspects left out
    num_usable: int  # leading blocks that some pool holds
    num_enough: int  # leading blocks that a cache or a prefill worker may provide: all that a token comes after
    prefill: tuple[Member, ...]  # workers that could prefill, in no order

    @property
    def is_cached(self) -> bool:
        """Whether nothing is left for a prefill worker."""
        return self.num_usable >= self.num_enough

    @property
    def num_uncached_tokens(self) -> int:
        """Tokens of the prompt that no cache has."""
        return self.request.num_tokens - self.num_usable * self.block_tokens

    def num_following(self, member: Member) -> int:
        """Return how many leading blocks a worker is computing for another request, if more than caches have."""
        promised = self.request.promised.get(member.worker, 0)
        return promised if promised > self.num_usable else 0

    def longest_prefix(self, member: Member) -> int:
        """Return after how many blocks a worker could resume, from its own datacenter's pool and its promises."""
        credit = self.credits.get(member.dc)
        return max(credit.longest if credit else 0, self.request.promised.get(member.worker, 0))


def facts_of(request: RequestFacts, members: RegistryView, decode: Member, layout: KvLayout) -> Facts:
    """Return what is known of a request that `decode` serves."""
    suspects = members.suspects(decode.dc)
    credits = credits_by_dc(request.keys, request.held, members, layout, suspects)
    num_usable = 0
    if credits:
        combined = no_groups(layout, len(request.keys))
        for credit in credits.values():
            combined |= credit.groups
        num_usable = int(longest_resume(layout, combined))
    return Facts(
        request=request,
        decode=decode,
        block_tokens=layout.block_tokens,
        suspects=suspects,
        credits=credits,
        num_usable=num_usable,
        # A block that ends the prompt is taken where it is held, and then decode computes the last token alone. It is
        # not computed ahead: decode has to run that token in any case.
        num_enough=num_prefix_blocks(request.num_tokens, layout.block_tokens),
        prefill=_able_to_prefill(request, members, suspects),
    )


def _able_to_prefill(request: RequestFacts, members: RegistryView, suspects: frozenset[str]) -> tuple[Member, ...]:
    """Return the workers whose blocks would reach decode.

    What is made where decode's pool suspects a node would not come: a prefix is worth no more than its first hole.
    """
    return tuple(
        member
        for member in members.prefill
        if member.worker not in request.excluded and suspects.isdisjoint(members.nodes(member.dc))
    )
