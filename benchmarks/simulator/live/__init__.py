"""The suite itself beside the simulator: the same arrivals, and what its processes publish of themselves."""
