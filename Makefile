# Every action of the repository by name. `make help` lists them.
# PYTHON=... chooses the interpreter that .venv is made from; ARGS=... is passed on to pytest.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NEWEST := python3.13 python3.12 python3.11
# one process per core; a file's tests may be divided among them
PARALLEL ?= -n auto --maxprocesses 8 --dist worksteal
ARGS ?=

.PHONY: help setup demo test test-all lint format bench clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Make .venv and install medtrain for development

# reruns only when pyproject.toml changes; the package itself is installed editable
$(STAMP): pyproject.toml
	@test -x $(BIN)/python || { \
	  for python in $(PYTHON) python3 $(NEWEST); do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$${found:-}" ]; then \
	    echo "error: medtrain needs Python 3.11 or newer, python3 is $$(python3 --version 2>/dev/null || echo absent)" >&2; \
	    echo "hint: install it, then name it: make setup PYTHON=/path/to/python3.12" >&2; exit 1; \
	  fi; \
	  echo "making $(VENV) with $$($$found --version)"; \
	  "$$found" -m venv $(VENV) || { \
	    rm -rf $(VENV); \
	    echo "hint: on Debian and Ubuntu the module comes with the package python3-venv" >&2; exit 1; }; \
	}
	@echo "installing medtrain and its development tools (minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: setup  ## Phantom data, training, evaluation, prediction, export: under 5 minutes on 2 cores
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/demo.sh

lint: setup  ## Style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## Mend what the style checker can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint  ## What every change must pass: lint and the default tests
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

test-all: lint  ## The slow tests as well
	$(BIN)/python -m pytest -m '' $(PARALLEL) $(ARGS)

bench: setup  ## Engine overhead against a bare loop; accuracy per minute where MEDTRAIN_DATA is set
	$(BIN)/python scripts/bench_engine.py
	@if [ -n "$${MEDTRAIN_DATA:-}" ]; then $(BIN)/python scripts/bench_hippocampus.py; \
	else echo "bench_hippocampus.py left out: set MEDTRAIN_DATA to the folder that holds Task04_Hippocampus"; fi

clean:  ## Remove caches and build products; keeps .venv and outputs
	rm -rf build dist .demo .mypy_cache .ruff_cache .pytest_cache .import_linter_cache ./*.egg-info
	find medtrain tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
