"""Where requests come from: arrival processes, prompts, traces. Seeded and lazy."""
