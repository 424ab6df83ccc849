# Each target does all the set-up it needs on a fresh machine, and nothing twice.
PYTHON ?= python3.11
BIN := .venv/bin
INSTALLED := .venv/installed
PYTEST_OPTIONS := -n 2 --dist worksteal --durations 10
PYTEST := $(BIN)/python -m pytest $(PYTEST_OPTIONS)
# The first that runs is taken; pyenv keeps its own out of the way of PATH.
NEWEST_PYTHONS := python3.14 python3.13 python3.12 \
  $(shell ls -dr "$$(pyenv root 2>/dev/null)"/versions/3.1[2-9].*/bin/python 2>/dev/null)

.PHONY: quickstart test test-exhaustive test-newest test-all lint docs bench clean

quickstart: $(INSTALLED)
	$(BIN)/jaxllm quickstart

# One of each kind of check, in ten minutes on two cores.
test: $(INSTALLED)
	$(PYTEST) -m "not exhaustive"

# What `test` leaves out: all families at all levels, all mutations, long commands, many processes.
test-exhaustive: $(INSTALLED)
	$(PYTEST) -m exhaustive

# The tests that need no PyTorch, with the newest jax, flax, optax and orbax that are to be had.
test-newest:
	@for python in $(NEWEST_PYTHONS); do \
	  if $$python -c '' 2>/dev/null; then \
	    $(MAKE) .venv-newest/installed NEWEST=$$python && \
	    exec .venv-newest/bin/python -m pytest $(PYTEST_OPTIONS) -m "not exhaustive"; \
	    exit 1; \
	  fi; \
	done; echo "test-newest: Python 3.12 or newer was not found; the newest packages go untested"

test-all: test test-exhaustive test-newest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python benchmarks/run.py

docs: $(INSTALLED)
	$(BIN)/python -m mkdocs build --strict

clean:
	rm -rf .venv .venv-newest .cache build dist site *.egg-info

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
