# Set-up, figures, tests. `make help` lists the targets.
USABLE = import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3,$(shell $(p) -c '$(USABLE)' 2>/dev/null && echo $(p))))
BIN := .venv/bin
READY := .venv/.ready
LAB := .venv/.lab
SCALE ?= quick
LAUNCHER ?= auto
LOGGER ?= auto
UPDATE ?=
PANELS ?=
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup status index report which-decay site notebooks lab bench test test-faults lint

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-zA-Z%-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  SCALE=quick|cpu|paper LAUNCHER=auto|local|joblib|stacked|slurm LOGGER=auto|offline|online|disabled go with reproduce-...,"
	@echo "  and so do UPDATE=1, which replaces the figure's files under results/, and PANELS=name,name, which makes only these panels"
	@echo "  anew and takes the rows of the others from those files"
	@echo "  WDLAB_DATA=folder of the data sets, PYTHON=python3.12 for set-up, PYTEST_ARGS=... for test"

setup: $(READY)  ## build .venv with exactly the versions of requirements.lock

$(READY): pyproject.toml requirements.lock
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or 3.12 found; name one with PYTHON=..." >&2; exit 2; }
	@echo "building .venv with $(PYTHON) (several GB, a few minutes) ..."
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[dev]'
	@touch $@

reproduce-%: $(READY)  ## a figure: make reproduce-fig3 SCALE=quick; all of them: make reproduce-all
	@$(BIN)/python scripts/reproduce.py $* --scale $(SCALE) --launcher $(LAUNCHER) --logger $(LOGGER) \
		$(if $(filter-out 0,$(UPDATE)),--update) $(if $(PANELS),--panels $(PANELS))

fetch-%: $(READY)  ## download a data set into ./data: make fetch-mnist
	@$(BIN)/python scripts/fetch_data.py $*

status: $(READY)  ## state, progress and errors of every run in results/runs
	@$(BIN)/python -m wdlab.runs

index: $(READY)  ## the README's table of figures, from their declarations and verdicts
	@$(BIN)/python -m scripts.index

report: $(READY)  ## results/REPORT.md and report.json: what reproduced, at which scale, how surely
	@$(BIN)/python -m scripts.report

which-decay: $(READY)  ## docs/which_decay.md: which methods may be the best, from the tables of study1
	@$(BIN)/python -m scripts.which_decay

site: $(READY)  ## the report, the docs and the notebooks as pages in site/: open site/index.html in a browser
	@$(BIN)/python -m scripts.static_site

notebooks: $(READY)  ## execute the notebooks in place, which writes their pictures and verdicts
	@$(BIN)/python -m scripts.notebooks

lab: $(LAB)  ## open the notebooks in JupyterLab, which is installed into .venv the first time
	@$(BIN)/python -m jupyterlab notebooks

$(LAB): $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[dev,jupyter]'
	@touch $@

bench: $(READY)  ## costs next to torch's own: tables in results/benchmarks
	@MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=1073741824 $(BIN)/python scripts/benchmark.py

test: $(READY)  ## the whole test suite, on every core (15 minutes on two); no network, GPU or account needed
	@$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-faults: $(READY)  ## long tests of faults, then 100 kills at random moments: about 25 minutes
	@$(BIN)/python -m pytest -m long
	@$(BIN)/python -m tests.campaign --kills 100 --minutes 15

lint: $(READY)  ## ruff, check and format
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
