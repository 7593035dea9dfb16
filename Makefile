# make demo: the study on phantoms. make test: lint, types, tests. VENV=/some/venv reuses an environment.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install demo lint test test-slow

$(VENV)/.chexseg_ray: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

install: $(VENV)/.chexseg_ray

demo: install
	$(BIN)/python jobs/sweep.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -m "(science or ray) and not slow"

test-slow: install
	$(BIN)/python -m pytest -m slow
