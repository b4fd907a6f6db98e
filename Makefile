# The commands of this project. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(VENV)/.run-installed
DEV := $(VENV)/.dev-installed
PIP := $(BIN)/pip install --disable-pip-version-check --quiet -c requirements/constraints.txt
export PYTHONWARNINGS := ignore::FutureWarning

.PHONY: help install demo test soak lint bench bench-jobs cluster-up cluster-down cluster-demo clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1 \t/p' Makefile | expand -t 16

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=..."; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "cannot make a virtual environment: on Debian, apt-get install python3-venv"; exit 2; }

$(RUN): requirements/run.txt requirements/constraints.txt pyproject.toml | $(VENV)/bin/pip
	$(PIP) -r requirements/run.txt
	$(PIP) --no-deps -e .
	@touch $@

$(DEV): $(RUN) requirements/dev.txt
	$(PIP) -r requirements/dev.txt
	@touch $@

install: $(RUN) ## make .venv with everything the main job needs

demo: $(RUN) ## corpus to evaluated models on this machine
	$(BIN)/snakemake --profile site_configs/local

test: $(DEV) ## every test; as root, installs the Debian packages they need
	tests/install_packages.sh
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

soak: $(DEV) ## training through preemptions, walltimes, kills, lost nodes, a full disk on a real Slurm; torchrun, DeepSpeed over ssh (root)
	tests/install_packages.sh
	$(BIN)/python -m pytest -m soak tests/cluster tests/jobs

lint: $(DEV) ## ruff, mypy, snakefmt
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow

bench: $(DEV) ## kernels against their references, a training step against transformers, tokenising, loading
	$(BIN)/python -m kernels.benchmark
	$(BIN)/python -m tests.bench.train_step
	$(BIN)/python -m tests.bench.tokenizing
	$(BIN)/python -m tests.bench.loading

bench-jobs: $(DEV) ## what 1000 small jobs cost their controller, beside snakemake-executor-plugin-slurm (root, Debian)
	$(BIN)/python -m tests.bench.small_jobs

cluster-up: $(RUN) ## a real 4-node Slurm with accounting on this machine (root, Debian)
	tests/cluster/up.sh

cluster-down: ## take it down
	tests/cluster/down.sh

cluster-demo: $(RUN) ## the same pipeline as Slurm jobs: training on 2 nodes with 2 ranks each
	tests/cluster/demo.sh

clean: ## remove the results of demo and cluster-demo
	rm -rf results
