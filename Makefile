# Pragnosia's chores; `make` lists them. `make demo` and `make test` each do all set-up on a fresh machine.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := runs/demo
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-all lint format types contract check bench hooks clean

help:  ## this list
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(READY)  ## .venv with the pinned libraries: made if missing, brought up to date if the pins changed
	@echo "$(VENV) is ready; 'source $(BIN)/activate' puts the command pragnosia on your path"

# Everything below stands on this: a stamp newer than the pins and the project file.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version.split()[0] + "; name another: make PYTHON=python3.11" if sys.version_info < (3, 10) else 0)'
	@if $(BIN)/python -m pip --version >/dev/null 2>&1; then echo "== $(VENV): reused"; \
	  else echo "== $(VENV): made with $$($(PYTHON) --version)"; $(PYTHON) -m venv --clear $(VENV); fi
	@echo "== $(VENV): installing the pins of requirements.lock (about 2 GB; minutes the first time)"
	@$(PIP) install --no-compile -r requirements.lock
	@# on all cores, which pip does on one; a library's files for other Pythons do not compile, and are not asked for
	@$(BIN)/python -m compileall -q -j 0 -x '/tests/' $(VENV)/lib >/dev/null 2>&1 || true
	@echo "== $(VENV): installing pragnosia from src/"
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY)  ## train a sparse model on text this machine has, let it speak, say what it cost; stays in runs/demo
	@if [ -e $(DEMO) ]; then echo "== demo: $(DEMO) of an earlier run is trained anew"; rm -rf $(DEMO); fi
	@echo "== demo: train a sparse model on the documentation and source of the Python at hand"
	$(BIN)/pragnosia train configs/demo.yaml --data default --out $(DEMO)
	@echo "== demo: let it speak"
	$(BIN)/pragnosia generate $(DEMO) "The import statement" --max-new-tokens 80 --temperature 0.8 --seed 1
	@echo "== demo: what it is, and what a token costs"
	$(BIN)/pragnosia inspect $(DEMO)
	$(BIN)/pragnosia calibrate $(DEMO) --data README.md
	@echo "== demo: the model is in $(DEMO); try: $(BIN)/pragnosia chat $(DEMO)"

test: $(READY)  ## the tests, on up to 4 cores; set PRAGNOSIA_DATA to a folder of real text to run those that read it
	$(PYTEST)

test-all: $(READY)  ## the tests, slow ones too
	$(PYTEST) --slow

lint: $(READY)  ## ruff: rules and format
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check

format: $(READY)  ## ruff: mend what can be mended
	$(BIN)/python -m ruff check --fix
	$(BIN)/python -m ruff format

types: $(READY)  ## mypy, strict
	$(BIN)/python -m mypy

contract: $(READY)  ## import-linter: imports only go down
	$(BIN)/lint-imports --no-logo

check: lint types contract test  ## all that must pass before a change lands

bench: $(READY)  ## every benchmark: a table each, JSON beside it (long; one alone: .venv/bin/python benchmarks/NAME.py)
	@for question in benchmarks/[!_]*.py; do echo "== $$question"; $(BIN)/python "$$question" || exit 1; done

hooks: $(READY)  ## run lint, types and contract before every git commit
	$(BIN)/python -m pre_commit install

clean:  ## remove caches and build output; .venv and runs/ stay
	rm -rf build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
