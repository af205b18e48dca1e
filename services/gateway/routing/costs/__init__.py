"""What each way to serve a request would take: the request itself, and those that wait for it. Pure."""
