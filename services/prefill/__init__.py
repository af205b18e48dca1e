"""The prefill service: computes the KV of prompts, a chunk and a layer at a time, into its datacenter's pool."""
