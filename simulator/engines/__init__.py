"""Prefill and decode workers by the time that their steps take."""
