"""Engine speed side by side with others, and what the engine must not cost: see `benchmarks.engine.__main__`."""
