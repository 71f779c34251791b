# The one list of commands; `make` alone prints it. Every command uses the environment in
# .venv, which is made on first use.

export PATH := $(CURDIR)/.venv/bin:$(PATH)
PYTHON ?= $(shell command -v python3.11 || command -v python3)
ENV := .venv/installed
STAGES := $(shell awk '/^[a-z]/ {on = /^stages:/} on && /^  [a-z]/ {sub(":", ""); print $$1}' dvc.yaml)

.DEFAULT_GOAL := help
.PHONY: help env lock base data pipeline sweep adopt ui serve accept fresh params ledger bench bench-generation test test-all lint check format clean $(STAGES)

help:  ## print this list
	@echo "make COMMAND, one of:"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' Makefile
	@echo "or one stage alone:"
	@awk '/^[a-z]/ {on = /^stages:/} on && /^  [a-z]/ {sub(":", ""); name = $$1} \
	  on && /^    desc:/ {sub(/^ *desc: /, ""); printf "  %-12s %s\n", name, $$0}' dvc.yaml

env: $(ENV)  ## make .venv from pyproject.toml and configs/constraints.txt (2 minutes, 2 GB)

$(ENV): pyproject.toml configs/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "gptmill needs Python 3.11 or newer; name one: make env PYTHON=/path/to/python3.11"; exit 1; }
	@echo "making .venv: about 2 minutes and 2 GB, once"
	@$(PYTHON) -m venv .venv
	@python -m pip install -qq --disable-pip-version-check --constraint configs/constraints.txt --editable '.[dev]'
	@python -m pip check
	@touch $(ENV)

lock: $(ENV)  ## write configs/constraints.txt anew from what .venv holds
	@python -m pip freeze --exclude-editable \
	  | grep -v -i -E '^(nvidia|triton|cuda)' | sed -E 's/\+[a-z0-9]+$$//; s/ @ .*//' > configs/.constraints.partial
	@mv configs/.constraints.partial configs/constraints.txt

data: $(if $(BASE),base) $(ENV)  ## fetch the raw data of sources.toml into data/, checked against data.dvc
	@python -m flows data

base: $(ENV)  ## fine-tune from other weights, as configs/bases/x.yaml says: BASE=x
	@python -m flows base $(BASE)

pipeline: data  ## raw text to a classifier and an assistant: what is stale runs; BASE=x
	@python -m flows pipeline

sweep: data  ## search for better params as a file of configs/sweeps/ says; stopped, it goes on: FILE=...
	@python -m flows sweep $(FILE)

adopt: $(ENV)  ## write the sweep's best params into params.yaml, and take its results: FILE=...
	@python -m flows adopt $(FILE)

$(STAGES): $(ENV)
	@python -m flows stage $@

ui: $(ENV)  ## start the pages of Prefect and MLflow, until Ctrl-C
	@python -m flows ui

serve: $(ENV)  ## register the schedule of prefect.yaml and start a worker for it (beside `make ui`)
	@python -m flows serve

accept: $(ENV)  ## take a change of code that keeps a stage's bytes, without a re-run: STAGE=x
	@python -m flows accept $(STAGE)

fresh: $(ENV)  ## drop what a stage has trained so far, so that it begins anew: STAGE=x
	@python -m flows fresh $(STAGE)

params: $(ENV)  ## print every value that stages get: STAGE=x, or all
	@python -m flows params $(STAGE)

ledger: $(ENV)  ## which rows a step saw: STAGE=x STEP=n; where two runs part: STAGE=x AGAINST=folder
	@python -m flows ledger STAGE=$(STAGE) STEP=$(STEP) AGAINST=$(AGAINST)

bench: $(ENV)  ## training steps and new ids a second, ours beside its peers
	@PYTHONPATH=src:. python benchmarks/training.py
	@PYTHONPATH=src:. python benchmarks/generation.py

bench-generation: $(ENV)  ## the second half of `bench` alone
	@PYTHONPATH=src:. python benchmarks/generation.py

# one process a core, four at the most; a file's tests stay together, since they share fixtures
SIDE_BY_SIDE := -n logical --maxprocesses=4 --dist loadfile

test: $(ENV)  ## the tests
	@python -m pytest $(SIDE_BY_SIDE)

test-all: $(ENV)  ## the slow and GPU tests too
	@python -m pytest $(SIDE_BY_SIDE) -m ''

lint: $(ENV)  ## format, style, types, layers
	@ruff format --check .
	@ruff check .
	@mypy
	@PYTHONPATH=src:. lint-imports

check: lint test  ## what CI runs

format: $(ENV)  ## rewrite the code as `make lint` wants it
	@ruff format .
	@ruff check --fix .

clean:  ## remove caches; data, artifacts and history stay
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
