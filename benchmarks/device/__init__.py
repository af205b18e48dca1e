"""The sections of `benchmarks.gpu`: what a device can do, whether the engines are right on it, and how fast."""
