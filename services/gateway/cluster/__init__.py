"""What the gateway knows of workers and pools, and how it comes to know it."""
