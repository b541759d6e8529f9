# make quickstart: from nothing to a trained model and its pictures.   make test: lint, types, tests, coverage.
# make test-fast: lint, types, and the tests that start no processes, in at most 3 minutes.
# make chaos, make fuzz, make mutants: long tests of reliability and of the tests (docs/reliability.md, docs/mutants.md).
# make docs: the documentation site.   make licences, make audit: of the packages that are used.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch# what to install as torch: see docs/install.md
BIN := $(VENV)/bin
PARALLEL = -n $(WORKERS) --dist loadfile --no-loadscope-reorder# of pytest-xdist; the order is that of tests/conftest.py
WORKERS ?= 2# of make test: test files that run at once
CASES ?= 20# of make chaos
EXAMPLES ?= 850# of make fuzz, for each of its 12 readers
SAMPLE ?= 40# of make mutants, for each module
EXTRAS := all,dev,docs

.PHONY: venv quickstart test test-fast lint docs chaos fuzz mutants licences audit clean

venv: $(VENV)/.installed

$(VENV)/.installed: setup.cfg setup.py pyproject.toml configs/constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint configs/constraints.txt $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint configs/constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

quickstart: venv
	$(BIN)/python -m tools.quickstart

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest $(PARALLEL) --durations=15 --cov --cov-report=term:skip-covered

test-fast: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest $(PARALLEL) --durations=15 -m 'not slow'

docs: venv # builds build/site; with its search: python -m http.server --directory build/site
	NO_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict --quiet

chaos: venv
	$(BIN)/python tests/chaos/run.py --cases $(CASES) $(SEED:%=--seed %)

fuzz: venv
	OMP_NUM_THREADS=1 FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/pytest tests/integration/test_fuzz.py

mutants: venv
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants/run.py --sample $(SAMPLE) $(SEED:%=--seed %) $(MODULE:%=--module %)

licences: venv
	$(BIN)/python docs/licences.py

audit: venv # asks a service on the internet about known vulnerabilities of the pinned versions
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install --quiet pip-audit
	build/audit/bin/pip-audit --requirement configs/constraints.txt --no-deps --disable-pip

clean:
	rm -rf quickstart build *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage*
