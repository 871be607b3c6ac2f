# What a developer does here.  Everything happens in .venv, which is made when it is needed and brought up to date when
# setup.cfg or pyproject.toml change.  Needs: python3.11 (or newer, with venv) and make.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
WORKER ?= sync
BIN    := $(VENV)/bin
INSTALLED := $(VENV)/.installed
READY     := $(VENV)/.ready-for-tests

.DEFAULT_GOAL := help
.PHONY: help run test check lint types model fuzz bench crowd build clean

help:  ## say what can be made here
	@echo "make …"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 10

run: $(INSTALLED)  ## serve the demo application on http://127.0.0.1:8000 with two workers
	@echo "Serving the demo application on http://127.0.0.1:8000 (Ctrl-C ends it) …"
	@exec $(BIN)/forkserve --bind 127.0.0.1:8000 --workers 2 --pythonpath docs/examples demo:app

test: $(READY)  ## run the tests
	@echo "Running the tests …"
	@$(BIN)/pytest $(PYTEST_ARGS)

check: lint types test build  ## all that continuous integration runs: lint, types, test, build
	@echo "All checks passed."

lint: $(READY)  ## look for mistakes and untidy code (ruff)
	@echo "Looking for mistakes (ruff) …"
	@$(BIN)/ruff check .

types: $(READY)  ## check the types (mypy, strict)
	@echo "Checking the types (mypy) …"
	@$(BIN)/mypy

model: $(READY)  ## walk more states of the supervisor's model than the tests do (minutes; MODEL_ARGS=--help)
	@echo "Walking the supervisor's model …"
	@$(BIN)/python -m tests.model.walk $(MODEL_ARGS)

fuzz: $(READY)  ## try to hurt a worker with strange bytes (two minutes; FUZZ_ARGS=--help)
	@echo "Trying to hurt a worker …"
	@$(BIN)/python -m tests.fuzz.fuzz $(FUZZ_ARGS)

bench: $(INSTALLED)  ## compare with gunicorn and granian (needs wrk; WORKER=sync|gthread|gevent|all, BENCH_ARGS=--help)
	@echo "Comparing $(WORKER) with gunicorn and granian …"
	@$(BIN)/python -m tests.bench --worker $(WORKER) $(BENCH_ARGS)

crowd: $(INSTALLED)  ## what 50 good clients notice of 2,000 slow ones, beside gunicorn (minutes; CROWD_ARGS=--help)
	@echo "Gathering a crowd …"
	@$(BIN)/python -m tests.bench.crowd $(CROWD_ARGS)

build: $(READY)  ## build wheel and source distribution into dist/
	@echo "Building wheel and source distribution …"
	@rm -rf build dist
	@$(BIN)/python -m build --outdir dist . >/dev/null
	@ls -1 dist/*

clean:  ## remove all that was made here: dist, caches, virtual environments
	@echo "Removing what was made …"
	@rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis $(VENV) .venv-bench
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" && "$(PYTHON)" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "make: Python 3.11 or newer with its venv module is needed (Debian: apt install python3 python3-venv);" \
	         "name another one with make PYTHON=…" >&2; exit 1; }
	@echo "Making the virtual environment $(VENV) …"
	@"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "make: no virtual environment could be made (Debian: apt install python3-venv)" >&2; exit 1; }

$(INSTALLED): setup.cfg pyproject.toml | $(BIN)/python
	@echo "Installing forkserve into $(VENV) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(READY): setup.cfg pyproject.toml | $(BIN)/python
	@echo "Installing forkserve and the tools of its tests into $(VENV) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(INSTALLED) $@
