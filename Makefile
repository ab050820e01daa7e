# Two commands on a fresh machine: `make demo` and `make test`. PYTHON picks the interpreter of the environment.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DEMO = runs/demo

.PHONY: demo test lint clean

$(VENV)/.ready: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-dev.txt
	touch $@

# The four stages on synthetic faces at a small size, every row of the F1 table, and pictures.
demo: $(VENV)/.ready
	$(BIN)/python -m tools.demo --out $(DEMO)

test: lint
	$(BIN)/python -m pytest -q tests/gpu
	$(BIN)/python -m pytest -q -n 2 --dist loadscope --no-loadscope-reorder

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf runs/demo cache .pytest_cache .mypy_cache .ruff_cache
