"""What the gateways decide, and whether they are right."""

from deploy.dashboards.panels import Dashboard, Panel, PanelGroup, Query, gauge, mean, quantiles, rate

_GATEWAY = 'job="gateway"'
_LITTLE_KNOWN = "appears once the controller has seen enough requests"

ROUTING = Dashboard(
    "prfaas-routing",
    "PrfaaS: routing",
    "The ways chosen, forecasts against measurements, the controller's wishes, admission and what gateways know.",
    (
        PanelGroup(
            "Decisions",
            (
                Panel(
                    "Ways chosen",
                    "none is a full hit, decode_only computes the prompt where it is decoded, local prefills in the "
                    "gateway's datacenter, remote in another one.",
                    "reqps",
                    (Query(rate("plans_total", "kind"), "{{kind}}"),),
                ),
                Panel(
                    "Measured over predicted time to first token",
                    "1 is right, 2 took twice as long as predicted. Lasting errors mean that workers or links are not "
                    "as they were measured.",
                    "none",
                    quantiles("forecast_ratio", (0.1, 0.5, 0.9), "kind"),
                ),
                Panel(
                    "Plans that did not hold",
                    "A rescued plan's blocks came too late, and decode computed them. A failed call was tried on "
                    "another worker.",
                    "reqps",
                    (
                        Query(rate("rescues_total", "kind"), "rescued: {{kind}}", "appears with the first late blocks"),
                        Query(
                            rate("prefill_failures_total", "code"),
                            "prefill: {{code}}",
                            "appears with the first failure",
                        ),
                        Query(
                            rate("decode_failures_total", "code"), "decode: {{code}}", "appears with the first failure"
                        ),
                    ),
                ),
            ),
        ),
        PanelGroup(
            "Controller",
            (
                Panel(
                    "Uncached tokens from which prefill goes elsewhere",
                    "Routing by cost has no threshold: this is the length from which its answers change.",
                    "short",
                    (
                        Query(
                            "max by (dc) (prfaas:offload_threshold_tokens)",
                            "to {{dc}}",
                            "absent while no length of prompt goes to that datacenter",
                        ),
                    ),
                ),
                Panel(
                    "Workers wanted and workers there",
                    "The fewest workers that carry the observed requests, beside those that answer Prometheus.",
                    "short",
                    (
                        Query(
                            "max by (role, dc) (prfaas:desired_replicas)", "wanted: {{role}} in {{dc}}", _LITTLE_KNOWN
                        ),
                        Query('sum by (job, site) (up{job=~"prefill|decode"})', "there: {{job}} in {{site}}"),
                    ),
                ),
                Panel(
                    "How far stages are used",
                    "The rate of requests over the rate that a stage sustains. Above 1 the queue before it grows.",
                    "none",
                    (Query("max by (stage) (prfaas:stage_utilisation)", "{{stage}}", _LITTLE_KNOWN),),
                ),
                Panel(
                    "Links on which bandwidth is scarce",
                    "1 while the link from that datacenter is nearly full or has a backlog.",
                    "none",
                    (Query("max by (dc) (prfaas:link_scarce)", "from {{dc}}", "absent while no link was measured"),),
                ),
            ),
        ),
        PanelGroup(
            "Admission",
            (
                Panel(
                    "Choices that wait for a turn",
                    "They wait while their worker has as much prompt work under way as the window allows.",
                    "short",
                    (Query(gauge("num_requests_waiting", "instance", _GATEWAY), "{{instance}}"),),
                ),
                Panel(
                    "Wait of those that waited, on average",
                    "Choices that found room at once are not counted.",
                    "s",
                    (Query(mean("request_queue_time_seconds"), "mean", "appears when a choice has waited"),),
                ),
                Panel(
                    "Requests refused, by reason",
                    "ttft and tpot could not get the latency that they asked for. queue and requests met a bound.",
                    "reqps",
                    (
                        Query(
                            rate("admission_rejections_total", "reason"),
                            "{{reason}}",
                            "appears with the first request that admission refuses",
                        ),
                    ),
                ),
            ),
        ),
        PanelGroup(
            "What gateways know",
            (
                Panel(
                    "Blocks known, by pool",
                    "Blocks that each pool has told of. Assumed ones were credited ahead of the pool's word.",
                    "short",
                    (
                        Query("max by (holder) (prfaas:placement_blocks)", "{{holder}}"),
                        Query("max by (holder) (prfaas:placement_assumed_blocks)", "assumed: {{holder}}"),
                    ),
                ),
                Panel(
                    "Pools of which nothing is known",
                    "1 while a gateway waits for a pool's snapshot. Its blocks are not used meanwhile.",
                    "none",
                    (Query("max by (holder) (prfaas:placement_stale)", "{{holder}}"),),
                ),
                Panel(
                    "Events handled, by topic",
                    "Load events come twice a second from each worker and pool. No events mean that the broker is "
                    "away: plans then use the last known state.",
                    "ops",
                    (
                        Query(rate("kafka_events_consumed_total", "topic", _GATEWAY), "{{topic}}"),
                        Query(
                            rate("kafka_events_dropped_total", "topic"),
                            "dropped: {{topic}}",
                            "appears with the first event that was given up",
                        ),
                    ),
                ),
            ),
        ),
    ),
)
