"""The slow loop: what was observed, beliefs, capacity plans, wanted replicas; it decides no request."""
