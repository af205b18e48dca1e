"""The page at `/`, and what it reads: timelines of requests and the live state."""
