"""What the model runs on NVIDIA GPUs in place of PyTorch operators: fused kernels in Triton, decode steps as graphs."""
