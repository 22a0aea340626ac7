# The first two targets need nothing but Python 3.11+, pip and make: they build .venv on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast check format bench bench-gpu clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP) ## the whole upgrade on real images, ending with the verdict and the report page
	$(BIN)/toolkit upgrade experiment=elpv

test: $(STAMP) ## the test suite (everything but the tests that need a GPU)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not gpu"

test-fast: $(STAMP) ## the tests that take seconds
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not gpu and not slow"

check: $(STAMP) ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(STAMP) ## rewrite the files in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## the benchmarks of the docs, on the CPU (scripts/bench_*.py)
	set -e; for script in scripts/bench_*.py; do echo "$$script"; $(BIN)/python $$script; done

bench-gpu: $(STAMP) ## the training benchmark on a CUDA device
	PYTHONPATH=scripts $(BIN)/python -m benching.gpu

clean: ## remove the virtual environment and what runs left
	rm -rf $(VENV) build dist *.egg-info runs multirun store

$(STAMP): pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@
