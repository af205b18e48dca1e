"""What the router chooses beside what it could have chosen, live: never slower than staying home."""
