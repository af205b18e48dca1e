#!/bin/sh
# Adds a second node to the west's pool: run it beside `make up`. It says in its membership events that it is there; from the
# next request on, gateways plan with both nodes, and each block belongs to one of them. Blocks that change their owner are
# misses once. After Ctrl-C the node's blocks are computed again; nobody has to be told.
set -eu
cd "$(dirname "$0")/.."
export PRFAAS_DC=west PRFAAS_WORKER_ID=cachepool-west-2
export PRFAAS_GRPC_PORT="${PRFAAS_GRPC_PORT:-7103}" PRFAAS_HTTP_PORT="${PRFAAS_HTTP_PORT:-7203}"
export PRFAAS_POOL_OBJECT_URL="${PRFAAS_POOL_OBJECT_URL-file://$PWD/.run/pool}"
exec "${PYTHON:-.venv/bin/python}" -m services.cachepool
