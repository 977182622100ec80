# `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKSPACE ?= workspace
CONFIG ?=
DATA ?= $(WORKSPACE)/shards
RUN ?=
INPUT ?=
ARGS ?=
DEMO := demo-videos

.DEFAULT_GOAL := help
# Each command has its own default, which $(CONFIG) replaces.
CHOSEN := $(if $(CONFIG),--config $(CONFIG))

.PHONY: help install curate train stats test lint format docs clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12
	@echo 'variables: INPUT="videos/ more.mp4" WORKSPACE=workspace CONFIG=configs/cpu.yaml ARGS="key=value ..."'
	@echo '           DATA=workspace/shards RUN=runs/mine CONFIG=configs/train/tiny.yaml for train'

# uv installs in parallel and from its cache; pip alone takes several times as long.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev]'
	@touch $@

install: $(VENV)/installed ## make .venv with everything in it

curate: $(VENV)/installed ## videos into shards; without INPUT, demo videos are built and curated
ifeq ($(strip $(INPUT)),)
	$(BIN)/s2v demo $(DEMO)
	$(BIN)/s2v curate --input $(DEMO) --workspace $(WORKSPACE) $(CHOSEN) $(ARGS)
else
	$(BIN)/s2v curate --input $(INPUT) --workspace $(WORKSPACE) $(CHOSEN) $(ARGS)
endif

train: $(VENV)/installed ## train on the shards in DATA; without CONFIG, a tiny model on the CPU
	$(BIN)/s2v train --data $(DATA) $(CHOSEN) $(if $(RUN),--out $(RUN)) $(ARGS)

stats: $(VENV)/installed ## the funnel of WORKSPACE
	$(BIN)/s2v stats --workspace $(WORKSPACE)

test: $(VENV)/installed ## all tests, two files at a time
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/installed ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed ## put the code into its style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/installed ## write docs/config.md and docs/train_config.md from the config classes
	$(BIN)/python -m curation.config_reference > docs/config.md
	$(BIN)/python -m training.config_reference > docs/train_config.md

clean: ## remove the demo videos, caches and .venv; workspaces stay
	rm -rf $(DEMO) $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
