# make demo: the study on phantoms. make test: lint, types, tests. VENV=/some/venv reuses an environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint

$(VENV)/.chexseg_ray: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

demo: $(VENV)/.chexseg_ray
	$(BIN)/python jobs/sweep.py

lint: $(VENV)/.chexseg_ray
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -m "science or ray"

test-slow: $(VENV)/.chexseg_ray
	$(BIN)/python -m pytest -m slow
