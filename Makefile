# Everything that a fresh machine with Python 3.11 or later needs. Each target builds the environment first.

PYTHON ?= python3
BIN := .venv/bin
# Tests start hundreds of processes: their bytecode is kept, also where the environment forbids it.
TEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.PHONY: demo test quick lint check docs results clean

demo: .venv/ready  ## run the study on the embedded digits; table, figure and page go to studies/digits
	$(BIN)/shiftscope study digits

test: .venv/ready  ## run all tests, doctests and the code in the pages
	$(TEST)

quick: .venv/ready  ## run the tests that are not marked slow
	$(TEST) -m "not slow"

lint: .venv/ready  ## check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test

docs: .venv/ready  ## build the site in build/site
	$(BIN)/python docs/build.py

results: .venv/ready  ## rebuild every committed table and figure from its records
	$(BIN)/python results/rebuild.py

clean:
	rm -rf .venv build dist studies .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@echo 'Installing into .venv; this takes a few minutes the first time.'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@
