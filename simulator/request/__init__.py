"""One request: plan, prefill, delivery of KV, decode, and what losses make of it."""
