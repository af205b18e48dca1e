"""Model files: catalog, configuration, conversion, readers of each format. No torch."""
