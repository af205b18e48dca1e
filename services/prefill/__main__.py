"""`python -m services.prefill`: one prefill worker, configured by PRFAAS_* variables."""

from services.prefill.app import run
from shared.service.lifecycle import run_service

if __name__ == "__main__":
    raise SystemExit(run_service(run))
