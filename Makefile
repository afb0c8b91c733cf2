# Set-up, figures, tests. `make help` lists the targets.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
SCALE ?= quick
LAUNCHER ?= auto
LOGGER ?= offline

.DEFAULT_GOAL := help
.PHONY: help setup test lint

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-zA-Z%-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  SCALE=quick|cpu|paper LAUNCHER=auto|local|joblib LOGGER=offline|online|disabled go with reproduce-figN"

setup: $(READY)  ## build .venv with exactly the versions of requirements.lock

$(READY): pyproject.toml requirements.lock
	@echo "building .venv with $(PYTHON) (several GB, a few minutes) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[dev]'
	@touch $@

reproduce-%: $(READY)  ## a figure: make reproduce-fig3 SCALE=quick
	@$(BIN)/python scripts/reproduce.py $* --scale $(SCALE) --launcher $(LAUNCHER) --logger $(LOGGER)

fetch-%: $(READY)  ## download a data set into ./data: make fetch-mnist
	@$(BIN)/python scripts/fetch_data.py $*

test: $(READY)  ## the whole test suite; no network, GPU or account needed
	@$(BIN)/python -m pytest

lint: $(READY)  ## ruff, as the tests run it
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
