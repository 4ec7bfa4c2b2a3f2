# make app: the dashboard on the shipped models. make test: everything that checks, but slow tests.
# Needs Python 3.11 or newer. TORCH_INDEX names another index for torch alone (its CPU builds, say).
PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH_INDEX ?=
BIN := .venv/bin

.PHONY: app test test-all check browser clean

app: .venv/installed
	$(BIN)/samsvae app

# A file of tests at a time, those of the browser first, with one process more than processors: a
# test waits for a browser or another process almost half of the time.
WORKERS = $(shell $(PYTHON) -c 'import os; print(1 + len(getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count()))(0)))')
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: .venv/tools
	$(PYTEST)

test-all: .venv/tools
	$(PYTEST) -m ""

check: .venv/tools
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

.venv/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; $(PYTHON) is older. Set PYTHON=..."; exit 2; }
	$(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX),$(BIN)/pip install $$(grep -o '^torch==[0-9.]*' requirements.txt) --index-url $(TORCH_INDEX))
	$(BIN)/pip install -r requirements.txt
	$(BIN)/pip install --no-deps -e .
	touch $@

.venv/tools: .venv/installed requirements-dev.txt
	$(BIN)/pip install -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv build *.egg-info
