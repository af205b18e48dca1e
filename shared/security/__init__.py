"""Who may talk to whom, and how it is encrypted: certificates, identities, rights; one answer for all connections."""
