"""Whether the simulator can be trusted: queueing theory, the planner, another simulator, and how large it may be."""
