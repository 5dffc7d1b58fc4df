# Everything a fresh machine with Python 3.11 or later needs. `make demo` and `make test` build the environment first.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint check docs clean

demo: .venv/ready  ## the study on the embedded digits: table, figure and records in studies/digits
	$(BIN)/shiftscope study digits

test: .venv/ready  ## all tests, doctests and the code in the pages
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: .venv/ready  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test

docs: .venv/ready  ## the site in build/site, with the reference of commands and Python
	$(BIN)/python docs/build.py

clean:
	rm -rf .venv build dist studies .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@echo 'Installing into .venv; this takes a few minutes the first time.'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@
