"""`python -m services.cachepool`: serve one pool node until SIGTERM."""

from services.cachepool.app import run
from shared.service.lifecycle import run_service

raise SystemExit(run_service(run))
