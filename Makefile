# Everything happens in .venv; `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
READY_TEST := .venv/.ready-test
READY_BENCH := .venv/.ready-bench

.PHONY: help setup train test lint format types docs bench test-gpu clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with everything that training needs

train: $(READY) ## get Fashion-MNIST and train on every GPU, or on 2 CPU workers
	@$(BIN)/python tools/first_run.py

test: $(READY_TEST) ## install what the tests need and run the whole suite
	@$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

lint: $(READY_TEST) ## lint, format check and type check
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check --summary=none
	$(BIN)/python -m trainer.config.document --check

format: $(READY_TEST) ## format the code and regenerate the configuration page
	@$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python -m trainer.config.document

bench: $(READY_BENCH) ## measure against the named rivals; minutes
	@for name in step_overhead startup sampler epoch_edge checkpoint verdict; do $(BIN)/python benchmarks/$$name.py; done

test-gpu: $(READY_TEST) ## the tests that need a CUDA device
	@$(BIN)/python -m pytest tests/gpu -m gpu $(PYTEST_ARGS)

clean: ## remove .venv; runs and data stay
	@rm -rf .venv

$(READY): pyproject.toml
	@echo "environment  making .venv with torch and the rest: about 3 minutes and 5 GB, once"
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 10) <= v < (3, 14) else "error: Python 3.10 to 3.13 is needed, this is %d.%d\n  make PYTHON=/path/to/python3.12 ..." % v[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "error: python3 -m venv failed; on Debian: apt-get install python3-venv"; exit 3; }
	$(BIN)/python tools/install.py -e .
	touch $@

$(READY_TEST): $(READY)
	@$(BIN)/python tools/install.py -e '.[test]'
	$(BIN)/python tools/packages.py
	touch $@

$(READY_BENCH): $(READY)
	@$(BIN)/python tools/install.py -e '.[bench]'
	touch $@
