"""Who asks: API keys and the accounts behind them, what each may do, and how much of it."""
