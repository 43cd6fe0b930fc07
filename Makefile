# Two commands for a fresh machine: `make demo` and `make test`. Everything is installed into $(VENV) only.
PYTHON ?= python3.11
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
PYTEST_ARGS ?= -n auto --maxprocesses 4
# A second interpreter for the half of scfm that does without torch, under the newest anndata.
LIGHT_PYTHON ?= python3.12
LIGHT_TESTS = $(wildcard tests/test_genes*.py tests/test_counts*.py tests/test_tokenizers*.py tests/test_golden_tokens.py)

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
INSTALL := $(PIP) install --quiet --disable-pip-version-check -c $(CONSTRAINTS)
SOURCES := scfm tests scripts benchmarks docs
LIGHT := $(VENV)-light

.DEFAULT_GOAL := help
.PHONY: help demo test light lint docs bench bench-gpu tutorials clean

help: ## say what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /make \1	/' | expand -t 18

demo: $(VENV)/.demo ## install scfm and embed the cells that scanpy ships
	$(BIN)/python scripts/demo.py

test: lint docs ## lint, types, tests, documentation, demo
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)
	$(BIN)/python scripts/demo.py

light: $(LIGHT)/.light ## test genes, counts and tokenizers without torch, under Python 3.12
	$(LIGHT)/bin/python -m pytest $(PYTEST_ARGS) $(LIGHT_TESTS)

lint: $(VENV)/.test
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

docs: $(VENV)/.test ## build the documentation into docs/_build/html
	rm -rf docs/api docs/tutorials
	$(BIN)/sphinx-build -W --keep-going -q -E -b html docs docs/_build/html

bench: $(VENV)/.test ## measure speed and memory, print the table of docs/benchmarks.md
	$(BIN)/python benchmarks/run.py

bench-gpu: $(VENV)/.test ## measure training on a GPU, print the tables for docs/benchmarks.md
	$(BIN)/python benchmarks/bench_gpu.py

tutorials: $(VENV)/.test ## run the notebooks again, outputs in place
	$(BIN)/jupyter execute --inplace tutorials/*.ipynb

clean: ## remove what the commands above have made, $(VENV) included
	rm -rf $(VENV) $(LIGHT) build dist docs/_build docs/_generated docs/api docs/tutorials demo-output .hypothesis .mypy_cache .pytest_cache .ruff_cache

# torch is installed first and alone: an open requirement of another package would fetch the newest build,
# gigabytes of CUDA libraries with it.
$(VENV)/.torch: $(CONSTRAINTS)
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not here; name a Python >= 3.11: make PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(INSTALL) -e ".[demo]"
	touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(INSTALL) -e ".[test,docs]"
	touch $@ $(VENV)/.demo

$(LIGHT)/.light: pyproject.toml
	test -x $(LIGHT)/bin/python || $(LIGHT_PYTHON) -m venv $(LIGHT)
	$(LIGHT)/bin/python -m pip install --quiet --disable-pip-version-check \
		"anndata[dask]>=0.13" distributed numba numpy pandas scanpy scipy tqdm hypothesis pytest pytest-xdist
	$(LIGHT)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@
