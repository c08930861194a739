# Everything a person or a machine does here; `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install demo test check ui format bench clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[ui,dev]'
	touch $(STAMP)

install: $(STAMP)  ## make the environment in .venv

demo: $(STAMP)  ## run the whole life of an experiment on the bundled world, offline
	HF_HUB_OFFLINE=1 $(BIN)/sae run world-demo

test: $(STAMP)  ## run the tests
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile

check: $(STAMP)  ## lint, types, import contracts, definitions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	DAGSTER_HOME= $(BIN)/dagster definitions validate -w workspace.yaml

ui: $(STAMP)  ## serve the graph on http://127.0.0.1:3000
	DAGSTER_HOME=$$($(BIN)/sae home --dagster) $(BIN)/dagster dev -w workspace.yaml -h 127.0.0.1

format: $(STAMP)  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)  ## measure the claims that docs/benchmarks.md makes
	$(BIN)/python -m benchmarks.harvest

clean:  ## delete the environment and every result
	rm -rf $(VENV) .sae
