"""How a process is hosted: signals, health, HTTP status."""
