# The commands of the project. `make help` lists them.
#
#   PYTHON=python3.12   the interpreter to make .venv with
#   INDEX=URL           a further package index, for instance one with CPU-only builds of torch
#   ARGS=…              what is handed on to `prong run` or pytest

.DEFAULT_GOAL := help
.PHONY: help setup run repro test test-full test-gpu lint types check ci clean oracles
export PYTHON INDEX

BIN := .venv/bin

help:  ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup:  ## make .venv, at the versions of constraints.txt
	@scripts/setup.sh

run: setup  ## run the main job: prepare … promote
	@$(BIN)/prong run $(ARGS)

oracles: setup  ## what the tests compare with: Triton's client, pytorch-ood
	@scripts/test_oracles.sh || echo "not all could be installed: the tests that need it are skipped"

repro: setup  ## the same artefacts by DVC alone
	@$(BIN)/python -m pipelines.systems.dvc.stage_code
	@$(BIN)/dvc repro $(ARGS)

test: oracles  ## the quick tests, about 8 minutes on 2 cores
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu" $(ARGS)

test-full: oracles  ## all tests, the long ones too
	@PRONG_TEST_FULL=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-gpu: setup  ## the tests that need a CUDA device; without one they are skipped
	@$(BIN)/python -m pytest -m gpu $(ARGS)

lint: setup  ## style, docstrings, and which room may import which
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

types: setup  ## static types, strict
	@$(BIN)/mypy

check: lint types test  ## all that must pass before a commit

clean:  ## remove what the stages made; the cache and the registry stay
	rm -rf data/prepared models reports
