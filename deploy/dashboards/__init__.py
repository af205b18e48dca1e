"""Grafana's dashboards as data: what each panel shows, in which unit, and what it says to an operator."""
