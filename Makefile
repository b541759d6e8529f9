# make quickstart: from nothing to a trained model and its pictures.   make test: lint, types, tests, coverage.
# make chaos, make fuzz: long tests of reliability (docs/reliability.md).   make licences, make audit: of the packages that are used.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch# what to install as torch: see "Choosing torch" in the README
BIN := $(VENV)/bin
CASES ?= 20# of make chaos
EXAMPLES ?= 850# of make fuzz, for each of its 12 readers
EXTRAS := fast,s3,deepspeed,slides,slurm,eval,movie,measure,export,explore,dev

.PHONY: venv quickstart test lint chaos fuzz licences audit clean

venv: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml configs/constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint configs/constraints.txt $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint configs/constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

quickstart: venv
	$(BIN)/attributegan-shard phantom --count 4096 --size 64 --out quickstart/shards
	$(BIN)/attributegan-train --config configs/train/small.yaml data.shards=quickstart/shards run.dir=quickstart/run train.images=32000
	$(BIN)/attributegan-sample quickstart/run --out quickstart/tiles --count 64 --sweep --overwrite
	$(BIN)/attributegan-evaluate quickstart/run --shards quickstart/shards --out quickstart/report
	@printf '\nDone. Look at:\n  quickstart/tiles/       generated tiles, and one row of tiles per attribute, lowest level to highest\n'
	@printf '  quickstart/run/grids/   the same rows while the network learnt\n'
	@printf '  quickstart/report/      how real the tiles are and how well the attributes are obeyed: report.html; its numbers are above\n'
	@printf 'Next:\n  $(BIN)/tensorboard --logdir quickstart/run    the curves\n'
	@printf '  $(BIN)/attributegan-sample quickstart/run --out more --count 16 --levels cell_crowding=4,mitosis=frequent\n'
	@printf '  $(BIN)/attributegan-train --config configs/train/small.yaml data.shards=quickstart/shards run.dir=quickstart/run train.images=100000\n'
	@printf '                          goes on from where it stopped; README.md tells how to use your own tiles\n'

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest --cov --cov-report=term:skip-covered

chaos: venv
	$(BIN)/python tests/chaos/run.py --cases $(CASES) $(SEED:%=--seed %)

fuzz: venv
	OMP_NUM_THREADS=1 FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/pytest tests/test_fuzz.py

licences: venv
	$(BIN)/python docs/licences.py

audit: venv # asks a service on the internet about known vulnerabilities of the pinned versions
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install --quiet pip-audit
	build/audit/bin/pip-audit --requirement configs/constraints.txt --no-deps --disable-pip

clean:
	rm -rf quickstart build *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage*
