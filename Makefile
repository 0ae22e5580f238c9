# The two commands of the README, and what .ci/run adds. They need python3 and make only.
# PYTHON names another Python, PIP_FLAGS passes options to pip (an index of CPU builds, say).
PYTHON ?= python3
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
SUPPORTED := (3, 11) <= sys.version_info < (3, 14)

.PHONY: parity test lint types wheel clean

parity: $(VENV)/.installed
	$(BIN)/python -m gravity_core.conformance parity --out parity

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.installed
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

types: $(VENV)/.installed
	$(BIN)/python -m mypy

wheel: $(VENV)/.installed
	$(BIN)/python .ci/check_wheel.py

# Made anew only when what is to be installed has changed; .venv only if its Python will not do.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if $(SUPPORTED) else "needs Python 3.11 to 3.13, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	@$(BIN)/python -c 'import sys; sys.exit(not $(SUPPORTED))' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_FLAGS) --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist parity
