"""`make up`: a supervisor that keeps the processes of the Procfile running on this machine."""
