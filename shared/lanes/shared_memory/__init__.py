"""Payloads between processes of one host: who is attached to the pool's memory, and what each may still touch."""
