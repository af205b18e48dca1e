"""Traces: spans of requests and their phases, and the one module that knows OpenTelemetry."""
