# On a machine with Python and make alone, `make compare` and `make test` install what they need into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: compare published test test-all lint benchmark traps power docs site hooks clean

compare: $(INSTALLED)
	$(BIN)/python -m compare

published: $(INSTALLED)
	$(BIN)/python -m compare published

test: lint
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4

test-all: lint
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 -m "slow or not slow"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

benchmark: $(INSTALLED)
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/seeds.py
	$(BIN)/python benchmarks/cost.py

traps: $(INSTALLED)
	$(BIN)/python -m benchmarks.traps --fixes

power: $(INSTALLED)
	$(BIN)/python benchmarks/power.py

docs: $(INSTALLED)
	$(BIN)/python docs/reference.py

site:
	$(PYTHON) -m venv $(VENV)-site
	$(VENV)-site/bin/python -m pip install --quiet "pip>=25.1"
	$(VENV)-site/bin/python -m pip install --quiet --group site
	$(VENV)-site/bin/mkdocs build

hooks: $(INSTALLED)
	$(BIN)/pre-commit install

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-site site
