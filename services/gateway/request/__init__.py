"""One request's life: its plan carried out, its workers called, its text made."""
