"""`prfaas doctor`: finds the usual mistakes and says what to do about each. A check is a small function."""
