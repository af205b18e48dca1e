"""How the workers with a model fare."""

from deploy.dashboards.panels import Dashboard, Panel, PanelGroup, Query, gauge, quantiles, quotient, rate

_BOTH, _DECODE = 'job=~"prefill|decode"', 'job="decode"'

ENGINES = Dashboard(
    "prfaas-engines",
    "PrfaaS: engines",
    "Queues, pages, steps and speed of prefill and decode workers.",
    (
        PanelGroup(
            "Prefill and decode",
            (
                Panel(
                    "Requests that run",
                    "Prompts that a prefill worker computes, and requests that hold pages on a decode worker.",
                    "short",
                    (Query(gauge("num_requests_running", "instance", _BOTH), "{{instance}}"),),
                ),
                Panel(
                    "Requests that wait for memory",
                    "They wait for pages, on prefill also for a prompt with the same beginning.",
                    "short",
                    (Query(gauge("num_requests_waiting", "instance", _BOTH), "{{instance}}"),),
                ),
                Panel(
                    "KV pages in use",
                    "Pages held by requests. Pages of cached prompts that nobody holds count as free.",
                    "percentunit",
                    (Query("max by (instance) (prfaas:kv_cache_usage_perc)", "{{instance}}"),),
                ),
                Panel(
                    "Time spent in steps",
                    "The share of the last seconds in which the model computed. Near 1 the worker is the bottleneck.",
                    "percentunit",
                    (Query("max by (instance) (prfaas:step_busy)", "{{instance}}"),),
                ),
                Panel(
                    "Expected time of the prompts that are there",
                    "What the worker tells gateways. It rests on measured steps.",
                    "s",
                    (Query("max by (instance) (prfaas:queued_seconds)", "{{instance}}"),),
                ),
                Panel(
                    "Usual error of that expectation",
                    "The typical error of a step's prediction, as a share of the step.",
                    "percentunit",
                    (Query("max by (instance) (prfaas:step_profile_error)", "{{instance}}"),),
                ),
            ),
        ),
        PanelGroup(
            "Prefill",
            (
                Panel(
                    "Prompt tokens computed",
                    "Tokens whose KV each worker computed. Reused blocks are not in it.",
                    "tokens/s",
                    (Query(rate("prefill_computed_tokens_total", "instance"), "{{instance}}"),),
                ),
                Panel(
                    "Speed while computing",
                    "Tokens by the time in steps: what the device does when it has work.",
                    "tokens/s",
                    (
                        Query(
                            quotient(
                                rate("prefill_computed_tokens_total", "instance"),
                                rate("prefill_step_seconds_total", "instance"),
                            ),
                            "{{instance}}",
                            "absent for a worker that computes nothing",
                        ),
                    ),
                ),
                Panel(
                    "Length of a prefill step",
                    "The mean time of a step. An urgent prompt waits for the end of one.",
                    "s",
                    (
                        Query(
                            quotient(
                                rate("prefill_step_seconds_total", "instance"), rate("prefill_steps_total", "instance")
                            ),
                            "{{instance}}",
                            "absent for a worker that computes nothing",
                        ),
                    ),
                ),
                Panel(
                    "Prompts in a step",
                    "The mean number of prompts that are packed into a step.",
                    "short",
                    (
                        Query(
                            quotient(
                                rate("prefill_step_prompts_total", "instance"), rate("prefill_steps_total", "instance")
                            ),
                            "{{instance}}",
                            "absent for a worker that computes nothing",
                        ),
                    ),
                ),
                Panel(
                    "Blocks reused, by tier",
                    "Blocks of prompts that need no computing: on the device, or in the pool.",
                    "ops",
                    (Query(rate("prefill_reused_blocks_total", "tier"), "{{tier}}"),),
                ),
                Panel(
                    "Time that streaming did not hide",
                    "Seconds a second from the last computed layer until all is stored, and between steps while there "
                    "was work. Both are time lost.",
                    "none",
                    (
                        Query(rate("prefill_emission_exposed_seconds_total", "instance"), "sending: {{instance}}"),
                        Query(rate("prefill_step_gap_seconds_total", "instance"), "gaps: {{instance}}"),
                    ),
                ),
            ),
        ),
        PanelGroup(
            "Decode",
            (
                Panel(
                    "Tokens generated",
                    "Tokens of all running requests of each worker.",
                    "tokens/s",
                    (Query(rate("generation_tokens_total", "instance", _DECODE), "{{instance}}"),),
                ),
                Panel(
                    "Length of a decode step",
                    "How long a token takes. Prompts that are computed in the same steps make them longer.",
                    "s",
                    quantiles("decode_step_seconds", (0.5, 0.95), "instance"),
                ),
                Panel(
                    "Batch",
                    "Tokens by steps: the mean number of requests in a step.",
                    "short",
                    (
                        Query(
                            quotient(
                                rate("generation_tokens_total", "instance", _DECODE),
                                rate("decode_step_seconds_count", "instance"),
                            ),
                            "{{instance}}",
                        ),
                    ),
                ),
                Panel(
                    "Prompt tokens computed by decode",
                    "Ends of prompts, short prompts, and what came too late. In steps means beside a running batch.",
                    "tokens/s",
                    (
                        Query(rate("decode_computed_prompt_tokens_total", "instance"), "{{instance}}"),
                        Query(rate("decode_step_tail_tokens_total", "instance"), "in steps: {{instance}}"),
                    ),
                ),
                Panel(
                    "Share of steps outside the model",
                    "Planning, sampling's hand-out, copies. High shares mean that the processor holds the device up.",
                    "percentunit",
                    (
                        Query(
                            quotient(
                                rate("decode_step_outside_model_seconds_total", "instance"),
                                rate("decode_step_seconds_sum", "instance"),
                            ),
                            "{{instance}}",
                        ),
                    ),
                ),
                Panel(
                    "Pre-emptions and what they cost",
                    "Requests that gave up their pages, and tokens that were computed again.",
                    "ops",
                    (
                        Query(rate("num_preemptions_total", "instance"), "pre-emptions: {{instance}}"),
                        Query(rate("decode_recomputed_tokens_total", "instance"), "tokens again: {{instance}}"),
                    ),
                ),
                Panel(
                    "Blocks published and not published",
                    "Blocks that decode computed. Those that do not reach the pool are later misses.",
                    "ops",
                    (
                        Query(rate("decode_published_blocks_total", "instance"), "published: {{instance}}"),
                        Query(rate("decode_unpublished_blocks_total", "instance"), "not: {{instance}}"),
                    ),
                ),
                Panel(
                    "Entries waited for in vain, by worker",
                    "Entries that never came and entries that came damaged. Both are computed instead.",
                    "ops",
                    (
                        Query(rate("missing_entries_total", "instance"), "missing: {{instance}}"),
                        Query(rate("corrupt_entries_total", "instance"), "damaged: {{instance}}"),
                    ),
                ),
            ),
        ),
    ),
)
