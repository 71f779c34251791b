# The only list of commands; `make` alone prints the list. Every command uses the environment in
# .venv, created on first use.

export PATH := $(CURDIR)/.venv/bin:$(PATH)
PYTHON ?= $(shell command -v python3.11 || command -v python3)
ENV := .venv/installed
STAGES := $(shell awk '/^[a-z]/ {on = /^stages:/} on && /^  [a-z]/ {sub(":", ""); print $$1}' dvc.yaml)

.DEFAULT_GOAL := help
.PHONY: help env lock base data pipeline reproduce shards lineage sweep adopt ui serve accept fresh gc params ledger show compare plots report promote rollback bench bench-generation test test-all lint check format wheel docs docs-serve doctor clean $(STAGES)

help:  ## print this list
	@echo "make COMMAND, one of:"
	@awk -F ':.*## ' '/^##@ / {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' Makefile
	@echo; echo "Run one stage alone"
	@awk '/^[a-z]/ {on = /^stages:/} on && /^  [a-z]/ {sub(":", ""); name = $$1} \
	  on && /^    desc:/ {sub(/^ *desc: /, ""); printf "  %-16s %s\n", name, $$0}' dvc.yaml

# uv installs in a tenth of pip's CPU time, but reads none of pip's settings (a mirror, folders of
# wheels, certificates): they are handed on, with pip's rule that the best version of all indexes
# counts. Where uv fails all the same, pip installs.
PACKAGES := --constraint configs/constraints.txt --editable '.[pipeline,dev]'
SETTING = $$(python -m pip config get $(1) 2> /dev/null)
HANDED_ON = UV_INDEX_STRATEGY=unsafe-best-match \
  UV_DEFAULT_INDEX="$${PIP_INDEX_URL:-$(call SETTING,global.index-url)}" \
  UV_INDEX="$${PIP_EXTRA_INDEX_URL:-$(call SETTING,global.extra-index-url)}" \
  UV_FIND_LINKS="$${PIP_FIND_LINKS:-$(call SETTING,global.find-links)}" \
  UV_CONSTRAINT="$${PIP_CONSTRAINT:-$(call SETTING,global.constraint)}" \
  SSL_CERT_FILE="$${SSL_CERT_FILE:-$${PIP_CERT:-$(call SETTING,global.cert)}}"

##@ Set up
env: $(ENV)  ## create .venv from pyproject.toml and configs/constraints.txt (a minute, 2 GB)

$(ENV): pyproject.toml configs/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "gptmill needs Python 3.11 or newer; name one: make env PYTHON=/path/to/python3.11"; exit 1; }
	@echo "making .venv: about a minute and 2 GB, once"
	@$(PYTHON) -m venv .venv
	@python -m pip install -qq --disable-pip-version-check --target .venv/uv uv || true
	@$(HANDED_ON) .venv/uv/bin/uv pip install -q --python .venv/bin/python $(PACKAGES) 2> .venv/uv.log || \
	  python -m pip install -qq --disable-pip-version-check $(PACKAGES)
	@python -m pip check
	@touch $(ENV)

lock: $(ENV)  ## rewrite configs/constraints.txt from the packages installed in .venv
	@python -m pip freeze --exclude-editable \
	  | grep -v -i -E '^(nvidia|triton|cuda)' | sed -E 's/\+[a-z0-9]+$$//; s/ @ .*//' > configs/.constraints.partial
	@mv configs/.constraints.partial configs/constraints.txt

# a user's own data, as NAME=value arguments
OWN = $(foreach name,TEXT LABELLED CHATS FIELDS TURNS,$(if $($(name)),$(name)='$(subst ','\'',$($(name)))'))

##@ Run
data: $(if $(BASE),base) $(ENV)  ## fetch the raw data of sources.toml into data/; your own with TEXT=, LABELLED= or CHATS=path
	@python -m flows data $(strip $(OWN))

base: $(ENV)  ## switch to the weights and params of configs/bases/x.yaml, or to a preset: BASE=x, BASE=gpu/x
	@python -m flows base $(BASE)

pipeline: data  ## run every stale stage, from raw text to a classifier and an assistant; BASE=x, VERBOSE=1
	@python -m flows pipeline

reproduce: $(ENV)  ## make a pipeline run again from its record, and compare every output: RUN=<id in MLflow>
	@python -m flows reproduce RUN=$(RUN)

sweep: data  ## search for better params, or resume a stopped search: FILE=configs/sweeps/x.yaml
	@python -m flows sweep $(FILE)

adopt: $(ENV)  ## write the sweep's best params into params.yaml and adopt the results: FILE=...
	@python -m flows adopt $(FILE)

shards: $(ENV)  ## encode the text in several processes or machines before `make tokenize`: EXECUTOR=ray SHARDS=8 WORKERS=2
	@python -m flows shards "EXECUTOR=$(EXECUTOR)" "SHARDS=$(SHARDS)" "WORKERS=$(WORKERS)" "OPTIONS=$(OPTIONS)"

$(STAGES): $(ENV)
	@python -m flows stage $@

##@ Schedule and serve
ui: $(ENV)  ## serve the pages of Prefect and MLflow until Ctrl-C
	@python -m flows ui

serve: $(ENV)  ## register prefect.yaml's deployments and start a worker (beside `make ui`); ALERT_URL=webhook
	@python -m flows serve

##@ Repair
accept: $(ENV)  ## accept a code change that keeps a stage's bytes, without a re-run: STAGE=x
	@python -m flows accept $(STAGE)

fresh: $(ENV)  ## discard a stage's saved training, to train again from step 0: STAGE=x
	@python -m flows fresh $(STAGE)

gc: $(ENV)  ## show what the disk need not keep; FREE=1 frees it, NIGHTS=30 and REFUSED=3 say what stays
	@python -m flows gc NIGHTS=$(NIGHTS) REFUSED=$(REFUSED) FREE=$(FREE)

# the doctor runs before .venv exists, on any Python 3
##@ Look
doctor:  ## check this machine (Python, disk, memory, GPU, ports, git, proxies), and say what to do
	@$$(command -v .venv/bin/python || echo $(PYTHON)) -m flows.commands.inspect.doctor

params: $(ENV)  ## print the params of a stage, or of all stages: STAGE=x
	@python -m flows params $(STAGE)

show: $(ENV)  ## print rows as tokens, with those counted in the loss marked: STAGE=instruct ROW=n
	@python -m flows show STAGE=$(STAGE) ROW=$(ROW) PART=$(PART)

ledger: $(ENV)  ## print a step's training rows: STAGE=x STEP=n; or where two runs diverge: STAGE=x AGAINST=folder
	@python -m flows ledger STAGE=$(STAGE) STEP=$(STEP) AGAINST=$(AGAINST)

lineage: $(ENV)  ## print commit, params, data, licences, runs and energy behind a model: MODEL=classifier@champion or a folder
	@python -m flows lineage "MODEL=$(MODEL)"

##@ Compare and promote
compare: $(ENV)  ## compare two versions on the same test rows: A=champion B=artifacts, a folder, revision or run id
	@python -m flows compare "A=$(A)" "B=$(B)"

plots: $(ENV)  ## draw the curves of each stage on a page without a network: AGAINST=revision
	@python -m flows plots $(if $(AGAINST),"AGAINST=$(AGAINST)")

report: $(ENV)  ## write one HTML page on a run: RUN=artifacts, champion, a folder, revision or run id
	@python -m flows report "RUN=$(RUN)"

# NAME=value for the shell; a reason may hold any character
WORD = '$(1)=$(subst ','\'',$(value $(1)))'

promote: $(ENV)  ## make a registered version the champion: KIND=assistant VERSION=3 WHY="the reason"
	@python -m flows promote $(call WORD,KIND) $(call WORD,VERSION) $(call WORD,WHY)

rollback: $(ENV)  ## make the champion before the present one the champion again: KIND=assistant
	@python -m flows rollback $(call WORD,KIND) $(call WORD,WHY)

##@ Develop
bench: $(ENV)  ## measure training steps and new ids per second, of gptmill and of peers
	@PYTHONPATH=src:. python benchmarks/training.py
	@PYTHONPATH=src:. python benchmarks/generation.py

bench-generation: $(ENV)  ## run only the generation half of `bench`
	@PYTHONPATH=src:. python benchmarks/generation.py

# one process per core, four at most; the tests of a file stay together, since they share fixtures
SIDE_BY_SIDE := -n logical --maxprocesses=4 --dist loadfile --no-loadscope-reorder

test: $(ENV)  ## run the tests
	@python -m pytest $(SIDE_BY_SIDE)

test-all: $(ENV)  ## run all tests, including the slow and GPU tests
	@python -m pytest $(SIDE_BY_SIDE) -m ''

lint: $(ENV)  ## check format, style, types and layers
	@ruff format --check .
	@ruff check .
	@mypy
	@PYTHONPATH=src:. lint-imports

check: lint test  ## run `lint` and `test`, as CI does

format: $(ENV)  ## format the code and fix lint errors automatically
	@ruff format .
	@ruff check --fix .

# pip builds apart, with the build backend that pyproject.toml names
wheel: $(ENV)  ## build dist/gptmill-VERSION.whl; the version comes from git tags
	@rm -f dist/gptmill-*.whl
	@python -m pip wheel -q --disable-pip-version-check --no-deps --wheel-dir dist .
	@ls dist/gptmill-*.whl

# the site's tools stay out of .venv's own packages: nothing else needs them
DOCS := .venv/docs/installed
DOCS_PACKAGES = $$(python -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*project["optional-dependencies"]["docs"])')

$(DOCS): $(ENV) pyproject.toml
	@echo "fetching the tools of the documentation: 120 MB, once"
	@python -m pip install -qq --disable-pip-version-check --upgrade --target .venv/docs $(DOCS_PACKAGES)
	@touch $(DOCS)

docs: $(DOCS)  ## build the documentation into .state/docs/site; a dead link is an error
	@PYTHONPATH=src:. python -m docs.site build

docs-serve: $(DOCS)  ## serve the documentation on 127.0.0.1:8001 until Ctrl-C
	@PYTHONPATH=src:. python -m docs.site serve

clean:  ## remove caches, but keep data, artifacts and history
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
