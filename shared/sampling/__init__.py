"""The wire contract of sampling: parameters and log-probabilities, without torch."""
