"""What at least two services need; knows no service."""
