# Everything runs in .venv, which is made on first use: `make demo` and `make test` work on a fresh checkout.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed-by-make
DEMO   := demo-runs
export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types docs docs-check bench clean

help: ## list these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## install the package, with exact pins, into .venv

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tunesmith needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs,server,postgres,quantization,onnx,s3]'
	touch $@

demo: $(STAMP) ## the main job: a small tuned model against a base model six times its size
	rm -rf $(DEMO)
	$(BIN)/tunesmith tune recipes/demo-full.yaml --run-dir $(DEMO)/full
	$(BIN)/tunesmith tune recipes/demo-peft.yaml --run-dir $(DEMO)/peft
	$(BIN)/tunesmith tune recipes/demo-features.yaml --run-dir $(DEMO)/features
	@echo
	$(BIN)/tunesmith compare $(DEMO)/full $(DEMO)/peft $(DEMO)/features
	$(BIN)/tunesmith runs show $(DEMO)/full

test: $(STAMP) ## run the tests, two files at a time
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations 15

lint: $(STAMP) ## style
	$(BIN)/ruff check src tests scripts benchmarks
	$(BIN)/ruff format --check src tests scripts benchmarks

types: $(STAMP) ## strict types
	$(BIN)/mypy

docs: $(STAMP) ## write the generated pages and build the site into site/
	$(BIN)/python scripts/generate_docs.py
	$(BIN)/mkdocs build --strict --quiet

docs-check: $(STAMP) ## the generated pages are current, and the site builds
	$(BIN)/python scripts/generate_docs.py --check
	$(BIN)/mkdocs build --strict --quiet

bench: $(STAMP) ## the benchmark on this machine's processor (long)
	$(BIN)/python benchmarks/cpu.py

clean: ## remove what make made, the runs of the demo included
	rm -rf $(VENV) $(DEMO) site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
