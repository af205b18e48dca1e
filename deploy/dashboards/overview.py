"""The first look: do requests get answers, how soon, and does the cache help?"""

from deploy.dashboards.panels import Dashboard, Panel, PanelGroup, Query, gauge, mean, quantiles, quotient, rate

_GATEWAY = 'job="gateway"'
_NO_FAULTS = "appears with the first request that fails"

OVERVIEW = Dashboard(
    "prfaas-overview",
    "PrfaaS: overview",
    "Requests, latency, cached share, objectives and processes at a glance.",
    (
        PanelGroup(
            "Requests",
            (
                Panel(
                    "Choices finished, by reason",
                    "stop and length are answers. abort means that the client left. error means that the suite failed.",
                    "reqps",
                    (Query(rate("request_success_total", "finished_reason"), "{{finished_reason}}"),),
                ),
                Panel(
                    "Requests being served and waiting",
                    "Waiting choices are held at the gateway until their worker has room. A line that keeps rising "
                    "means that more comes than the workers can serve.",
                    "short",
                    (
                        Query(gauge("num_requests_running", labels=_GATEWAY), "served"),
                        Query(gauge("num_requests_waiting", labels=_GATEWAY), "waiting for a turn"),
                    ),
                ),
                Panel(
                    "Requests refused or failed, by code",
                    "429 answers carry the reason of admission. Codes of clients' mistakes are shown too.",
                    "reqps",
                    (
                        Query(rate("request_errors_total", "code"), "{{code}}", _NO_FAULTS),
                        Query(
                            rate("admission_rejections_total", "reason"),
                            "refused: {{reason}}",
                            "appears with the first request that admission refuses",
                        ),
                    ),
                ),
            ),
        ),
        PanelGroup(
            "Latency",
            (
                Panel(
                    "Time to first token",
                    "From the request to the first token, the wait for a turn included.",
                    "s",
                    quantiles("time_to_first_token_seconds"),
                ),
                Panel(
                    "Time between tokens",
                    "Between the tokens of one choice, as they leave the workers.",
                    "s",
                    quantiles("inter_token_latency_seconds"),
                ),
                Panel(
                    "Time to last token",
                    "From the request to the last token. Long answers take long: compare it with the tokens.",
                    "s",
                    quantiles("e2e_request_latency_seconds"),
                ),
                Panel(
                    "Where a request's time goes, on average",
                    "Prefill is the time from the turn to the first token, decode the time from there to the last. "
                    "Turns are averaged over choices that had to wait.",
                    "s",
                    (
                        Query(
                            mean("request_queue_time_seconds"), "wait for a turn", "appears when a choice has waited"
                        ),
                        Query(mean("request_prefill_time_seconds"), "prefill"),
                        Query(mean("request_decode_time_seconds"), "decode"),
                    ),
                ),
                Panel(
                    "Time per output token",
                    "The mean time between the tokens of a choice. Its quantiles are over choices, not over tokens.",
                    "s",
                    quantiles("request_time_per_output_token_seconds", (0.5, 0.95)),
                ),
                Panel(
                    "Objectives kept",
                    "Of the choices that asked for a latency, by header or by setting, the share that got it. "
                    "ttft is the time to the first token, tpot the time per output token.",
                    "percentunit",
                    (
                        Query(
                            quotient(
                                rate("slo_outcomes_total", "objective", 'outcome="met"'),
                                rate("slo_outcomes_total", "objective"),
                            ),
                            "{{objective}}",
                        ),
                    ),
                ),
            ),
        ),
        PanelGroup(
            "Tokens and cache",
            (
                Panel(
                    "Tokens in and out",
                    "Prompt tokens taken and tokens sent, as clients are told in usage.",
                    "tokens/s",
                    (
                        Query(rate("prompt_tokens_total"), "prompt"),
                        Query(rate("generation_tokens_total", labels=_GATEWAY), "generated"),
                    ),
                ),
                Panel(
                    "Cached share of prompts",
                    "The share of prompt tokens that nobody computed again. It depends on what clients ask.",
                    "percentunit",
                    (
                        Query(
                            quotient(
                                rate("prefix_cache_hits_total", labels=_GATEWAY),
                                rate("prefix_cache_queries_total", labels=_GATEWAY),
                            ),
                            "cached",
                        ),
                    ),
                ),
                Panel(
                    "Prompt tokens, by where their KV came from",
                    "cache was computed before. prefill and decode were computed for this request by such a worker.",
                    "tokens/s",
                    (Query(rate("prompt_tokens_by_source_total", "source"), "{{source}}"),),
                ),
            ),
        ),
        PanelGroup(
            "Processes",
            (
                Panel(
                    "Processes that answer, by job",
                    "Processes whose metrics Prometheus could read. A line that falls is a process that is gone.",
                    "short",
                    (Query('sum by (job) (up{job=~"gateway|cachepool|prefill|decode"})', "{{job}}"),),
                ),
                Panel(
                    "Processor time",
                    "Cores that each process keeps busy. Engines take as many as their threads.",
                    "short",
                    (Query("sum by (instance) (rate(process_cpu_seconds_total[$__rate_interval]))", "{{instance}}"),),
                ),
                Panel(
                    "Memory",
                    "Resident memory of each process. A pool takes its budget, an engine its model and its pages.",
                    "bytes",
                    (Query("sum by (instance) (process_resident_memory_bytes)", "{{instance}}"),),
                ),
                Panel(
                    "How late event loops wake, the slowest hundredth",
                    "Long times mean that something blocks the loop, or that the machine has too few cores.",
                    "s",
                    quantiles("event_loop_lag_seconds", (0.99,), "instance"),
                ),
            ),
        ),
    ),
)
