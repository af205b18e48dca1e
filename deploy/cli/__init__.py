"""`prfaas`: the suite from a terminal. A module a command; they talk to a gateway over HTTP alone."""
