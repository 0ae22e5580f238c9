# The two commands of the README, and what .ci/run adds. They need python3 and make only.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: parity test lint types wheel clean

parity: $(VENV)/.installed
	$(BIN)/gravity parity --out parity

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

wheel: $(VENV)/.installed
	$(BIN)/python .ci/check_wheel.py

# Made anew only when what is to be installed has changed.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist parity
