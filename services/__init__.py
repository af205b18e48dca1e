"""The processes of the suite, one package each; none imports another."""
