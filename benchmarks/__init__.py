"""Measurements of the suite: `python -m benchmarks.<name> [--quick] [--json FILE]`."""
