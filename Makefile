# Every target makes its own set-up; nothing but Python 3.11 to 3.13, a compiler and apt is expected.
PYTHON ?= python3
# Tests wait for servers a quarter of their time: three at a time suit two cores. A file stays with one worker, so what it
# shares is made once; the long files come first. A worker that dies ends the run, and its test is named: pytest-xdist 3.8 may
# wait for ever once it has replaced one. PYTEST_ARGS=-x and the like replace all this.
PYTEST_ARGS ?= -n 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

BIN := .venv/bin
PACKAGES := ich_node training
SOURCES := $(PACKAGES) deploy tests

.DEFAULT_GOAL := help
.PHONY: help setup venv peers demo test lint format bench clean

help: ## Say what each target does
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Make .venv with the project and what it needs; quick when that is so
	@PYTHON="$(PYTHON)" deploy/setup

venv: setup

peers: ## Install the programs that tests talk to (DCMTK, Orthanc, ...), where apt can
	@deploy/install-peers

demo: setup ## Send three phantom studies through a node of their own; results in demo-output/
	$(BIN)/ich-node demo --output demo-output

test: setup peers ## Pass every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: setup ## Linters, types, import contracts
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy --strict $(PACKAGES) deploy/set_up.py
	$(BIN)/lint-imports --no-cache

format: setup ## Write the sources as the formatter wants them
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

bench: setup peers ## Measure, alone and in order
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.benchmarks

clean: ## Remove what was built here: the environment, caches, the demo's output
	rm -rf .venv build dist demo-output .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -rf *.egg-info
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
