# Everything a person or a machine does here; `make help` lists it.
PYTHON ?= python3
VENV := .venv
PEERS := .venv-peers
SAEBENCH := .venv-saebench
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install demo test check ui format bench bench-peers agreement chaos clean

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
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

check: $(STAMP)  ## lint, types, import contracts, definitions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	DAGSTER_HOME= $(BIN)/dagster definitions validate -w workspace.yaml

ui: $(STAMP)  ## serve the graph on http://127.0.0.1:3000
	$(BIN)/sae ui

format: $(STAMP)  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(PEERS)/.installed: constraints.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --upgrade pip
	grep -i '^torch==' constraints.txt > $(PEERS)/torch.txt
	$(PEERS)/bin/pip install --quiet --constraint $(PEERS)/torch.txt torch numpy
	$(PEERS)/bin/pip install --quiet --constraint $(PEERS)/torch.txt \
		sae-lens==6.54.12 dictionary-learning==0.1.0 eai-sparsify==1.3.3
	$(PEERS)/bin/pip uninstall --quiet --yes torchvision
	touch $@

$(SAEBENCH)/.installed: constraints.txt
	$(PYTHON) -m venv $(SAEBENCH)
	$(SAEBENCH)/bin/pip install --quiet --upgrade pip
	grep -i '^torch==' constraints.txt > $(SAEBENCH)/torch.txt
	$(SAEBENCH)/bin/pip install --quiet --constraint $(SAEBENCH)/torch.txt torch
	$(SAEBENCH)/bin/pip install --quiet --constraint $(SAEBENCH)/torch.txt sae-bench==0.6.0
	$(SAEBENCH)/bin/pip uninstall --quiet --yes torchvision
	touch $@

agreement: $(STAMP) $(SAEBENCH)/.installed  ## compare our metrics with those of SAEBench
	$(BIN)/python -m benchmarks.saebench_agreement --peer $(SAEBENCH)/bin/python

bench-peers: $(PEERS)/.installed  ## make the environment of the libraries that we compare with

bench: $(STAMP) $(PEERS)/.installed  ## measure the claims that docs/benchmarks.md makes
	$(BIN)/python -m benchmarks.harvest
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.many_saes
	$(BIN)/python -m benchmarks.overhead --experiment world-demo
	$(BIN)/python -m benchmarks.graph
	$(BIN)/python -m benchmarks.latents
	$(BIN)/python -m benchmarks.training --kind topk batch_topk --d-sae 2048 8192 --fvu-steps 400
	$(BIN)/python -m benchmarks.training --kind topk batch_topk --d-sae 32768 131072 --pairs \
		--rounds 3 --steps 1 --rows 16384

chaos: $(STAMP)  ## kill things at random for half an hour and look what is left
	$(BIN)/python -m tests.stress.chaos --minutes 30

clean:  ## delete the environment and every result
	rm -rf $(VENV) $(PEERS) $(SAEBENCH) .sae
