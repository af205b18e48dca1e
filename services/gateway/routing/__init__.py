"""Where a request runs and how its KV travels: pure decisions."""
