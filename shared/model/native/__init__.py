"""Kernels in C for what PyTorch does slowly on a CPU: decode steps of a few rows, and fused elementwise work."""
