"""`prfaas certs`: an authority of one's own, and a certificate for each process."""
