"""The gateway: the HTTP API, text, and the plan of every request."""
