"""Plans as timelines tell them."""

import math
from collections.abc import Sequence

from services.gateway.cluster.workers import Member
from services.gateway.routing.plan import Plan
from services.gateway.timeline.record import PlanNote, SourceNote, WayNote, WorkerSite
from shared.kv.entries import Source


def site_of(member: Member) -> WorkerSite:
    return WorkerSite(member.worker, member.dc)


def noted(plan: Plan) -> PlanNote:
    """Return what people are shown of a plan."""
    forecast = plan.forecast
    return PlanNote(
        kind=plan.kind,
        home_dc=plan.home_dc,
        decode=site_of(plan.decode),
        prefill=None if plan.prefill is None else site_of(plan.prefill),
        num_blocks=plan.num_blocks,
        usable_blocks=plan.usable_blocks,
        decode_sources=_sources(plan.decode_sources),
        prefill_sources=_sources(plan.prefill_sources),
        codec=plan.prefill_codec.name.lower(),
        forecast_ttft_s=forecast.ttft_s,
        forecast_time_per_output_token_s=forecast.time_per_output_token_s,
        alone_s=plan.alone_s if math.isfinite(plan.alone_s) else None,
        ways=tuple(
            WayNote(way.kind, site_of(way.member), way.cached_blocks, way.cost_s, way.ttft_s, way.is_chosen)
            for way in plan.ways
        ),
    )


def _sources(sources: Sequence[Source]) -> tuple[SourceNote, ...]:
    return tuple(SourceNote(source.first, source.end, source.dc) for source in sources)
