"""What an engine's steps take: measured, learnt, kept over restarts, told to gateways."""
