"""Notes of timelines."""

from services.gateway.timeline.record import PlanNote, WorkerSite

PLAN_NOTE = PlanNote(
    kind="remote",
    home_dc="west",
    decode=WorkerSite("decode-west", "west"),
    prefill=WorkerSite("prefill-east", "east"),
    num_blocks=6,
    usable_blocks=0,
    decode_sources=(),
    prefill_sources=(),
    codec="raw",
    forecast_ttft_s=0.5,
    forecast_time_per_output_token_s=0.01,
    alone_s=None,
    ways=(),
)
"""A plan with a prefill worker in the other datacenter."""
