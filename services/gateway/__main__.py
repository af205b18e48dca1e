"""`python -m services.gateway`: the HTTP API, configured by PRFAAS_* variables."""

from services.gateway.app import run
from shared.service.lifecycle import run_service

if __name__ == "__main__":
    raise SystemExit(run_service(run))
