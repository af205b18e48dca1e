"""Where KV lies, how it travels, and how the links bear it."""

from deploy.dashboards.panels import Dashboard, Panel, PanelGroup, Query, gauge, quantiles, quotient, rate

_POOL, _ENGINES = 'job="cachepool"', 'job=~"prefill|decode"'

TRANSFER = Dashboard(
    "prfaas-kv",
    "PrfaaS: KV and links",
    "Pools, where KV was found, links between datacenters, codecs and the object tier.",
    (
        PanelGroup(
            "Where KV was found",
            (
                Panel(
                    "Prompt tokens of workers, by where their KV was",
                    "On the worker's device, in a pool, or nowhere: then the worker computed it. What prefill has just "
                    "computed for a decode worker counts as the pool's.",
                    "tokens/s",
                    (
                        Query(rate("prefix_cache_hits_total", "job", _ENGINES), "{{job}}: device"),
                        Query(rate("external_prefix_cache_hits_total", "job"), "{{job}}: pool"),
                        Query(
                            f"{rate('external_prefix_cache_queries_total', 'job')}"
                            f" - {rate('external_prefix_cache_hits_total', 'job')}",
                            "{{job}}: computed",
                        ),
                    ),
                ),
                Panel(
                    "Entries that readers asked for",
                    "A miss is an entry that nobody had, wrote or could bring in time.",
                    "ops",
                    (Query(rate("fetched_entries_total", "result", _POOL), "{{result}}"),),
                ),
                Panel(
                    "What codecs gain",
                    "KV by the bytes that were sent for it. 1 is no gain. Within one host nothing is coded.",
                    "none",
                    (
                        Query(
                            quotient(rate("sent_raw_bytes_total", "codec"), rate("sent_coded_bytes_total", "codec")),
                            "{{codec}}",
                        ),
                    ),
                ),
            ),
        ),
        PanelGroup(
            "Pools",
            (
                Panel(
                    "Memory of pools in use",
                    "A pool that was in use for a while is full: it evicts what is worth least. Full is no fault.",
                    "percentunit",
                    (
                        Query(
                            "max by (instance) (prfaas:stored_bytes / (prfaas:budget_bytes > 0))",
                            "{{instance}}",
                        ),
                        Query(
                            "max by (instance) (prfaas:largest_tenant_bytes / (prfaas:budget_bytes > 0))",
                            "largest tenant: {{instance}}",
                        ),
                    ),
                ),
                Panel(
                    "Blocks evicted, entries refused or abandoned",
                    "Refused entries found a pool in which everything was held. Abandoned ones lost their writer.",
                    "ops",
                    (
                        Query(rate("evicted_blocks_total", "instance"), "evicted: {{instance}}"),
                        Query(rate("entries_refused_total", "instance"), "refused: {{instance}}"),
                        Query(rate("entries_abandoned_total", "instance"), "abandoned: {{instance}}"),
                    ),
                ),
                Panel(
                    "Payload in and out of pools",
                    "published comes from workers, pulled from other pools, fetched goes to readers.",
                    "Bps",
                    (
                        Query(rate("published_bytes_total", "instance"), "published: {{instance}}"),
                        Query(
                            rate("pulled_bytes_total", "instance"),
                            "pulled: {{instance}}",
                            "appears for a pool that has pulled",
                        ),
                        Query(rate("fetched_bytes_total", "instance"), "fetched: {{instance}}"),
                    ),
                ),
                Panel(
                    "Payload to readers, by lane",
                    "shared_memory serves workers of the same host, socket others, grpc those that have no lane.",
                    "Bps",
                    (Query(rate("lane_sent_bytes_total", "lane"), "{{lane}}"),),
                ),
                Panel(
                    "Held by streams",
                    "Leases, readers and writers. All return to zero when nothing is asked.",
                    "short",
                    (
                        Query(gauge("leases_held", "instance"), "leases: {{instance}}"),
                        Query(gauge("readers_open", "instance"), "readers: {{instance}}"),
                        Query(gauge("writers_open", "instance"), "writers: {{instance}}"),
                    ),
                ),
                Panel(
                    "Frames that failed their checksum",
                    "By source: a writer, memory, or the address of a peer. Any is a fault of hardware or software.",
                    "ops",
                    (
                        Query(rate("corrupt_frames_total", "source"), "{{source}}"),
                        Query(
                            rate("peers_suspected_total", "peer"),
                            "suspected: {{peer}}",
                            "appears with the first peer that corrupts or hangs",
                        ),
                    ),
                ),
            ),
        ),
        PanelGroup(
            "Links between datacenters",
            (
                Panel(
                    "Goodput of links",
                    "What a link brought while there was something to bring: its capacity, as routing knows it.",
                    "Bps",
                    (Query("max by (instance, dc) (prfaas:link_goodput_bytes_per_s)", "{{dc}} to {{instance}}"),),
                ),
                Panel(
                    "Payload that crossed",
                    "By urgency: what somebody waits for is in the foreground.",
                    "Bps",
                    (
                        Query(rate("link_received_bytes_total", "instance, dc"), "{{dc}} to {{instance}}"),
                        Query(rate("link_sent_bytes_total", "urgency"), "sent: {{urgency}}"),
                    ),
                ),
                Panel(
                    "Backlog of links, in time",
                    "What was asked for and is not here yet, by the goodput. Requests over this link wait as long.",
                    "s",
                    (
                        Query(
                            "max by (instance, dc) (prfaas:link_backlog_bytes / (prfaas:link_goodput_bytes_per_s > 0))",
                            "{{dc}} to {{instance}}",
                        ),
                    ),
                ),
                Panel(
                    "Round trip of links",
                    "Of a question to a pool there, at its least. 0 is not known.",
                    "s",
                    (Query("max by (instance, dc) (prfaas:link_round_trip_seconds)", "{{dc}} to {{instance}}"),),
                ),
                Panel(
                    "Pulls, by outcome",
                    "finished is usual. cancelled pulls had no reader any more, failed ones lost their peer.",
                    "ops",
                    (Query(rate("pulls_total", "outcome"), "{{outcome}}"),),
                ),
                Panel(
                    "Probes of pausing links",
                    "Pools ask a little over links that pause, so that their goodput stays known.",
                    "ops",
                    (
                        Query(
                            rate("link_probes_total", "dc, outcome"),
                            "from {{dc}}: {{outcome}}",
                            "appears once a link has paused",
                        ),
                    ),
                ),
            ),
        ),
        PanelGroup(
            "Object tier",
            (
                Panel(
                    "Objects stored",
                    "Bytes of the objects behind each pool. Nothing is shown for pools without an object tier.",
                    "bytes",
                    (
                        Query(
                            gauge("object_stored_bytes", "instance"),
                            "{{instance}}",
                            "absent without an object tier",
                        ),
                    ),
                ),
                Panel(
                    "Calls of the object store, the slowest twentieth",
                    "By operation. A slow store delays hits on objects, nothing else.",
                    "s",
                    quantiles("object_call_seconds", (0.95,), "operation", absent="appears when objects are used"),
                ),
                Panel(
                    "Calls of the object store that failed",
                    "By operation and kind. Blocks that cannot be read are computed.",
                    "ops",
                    (
                        Query(
                            rate("object_failures_total", "operation, kind"),
                            "{{operation}}: {{kind}}",
                            "appears with the first failure",
                        ),
                    ),
                ),
            ),
        ),
    ),
)
