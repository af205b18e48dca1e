"""HTTP: what clients send and get, validated and rendered."""
