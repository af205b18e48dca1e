"""Whose turn it is, and who is told to come back later: fair queues at the workers' doors."""
