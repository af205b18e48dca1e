"""`python -m services.decode`: one decode worker, configured by PRFAAS_* variables."""

from services.decode.app import run
from shared.service.lifecycle import run_service

if __name__ == "__main__":
    raise SystemExit(run_service(run))
