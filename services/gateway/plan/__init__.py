"""The planner as a command: TOML files in; tables, JSON and plots out."""
