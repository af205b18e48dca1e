"""What happened to each of the latest requests, phase by phase, within bounds."""
