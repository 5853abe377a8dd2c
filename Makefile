# On a machine with Python and make alone, `make compare` and `make test` install what they need into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: compare published test test-all long test-oldest test-newest lint benchmark traps power docs site hooks clean

compare: $(INSTALLED)
	$(BIN)/python -m compare

published: $(INSTALLED)
	$(BIN)/python -m compare published

PARALLEL := -q -rs -n auto --maxprocesses 4 --dist worksteal
test: lint
	$(BIN)/python -m pytest $(PARALLEL)

# tests/conftest.py lets XLA optimize less. These compile as users do; test-all takes larger samples.
AS_USERS := XLA_FLAGS=--xla_force_host_platform_device_count=2
test-all: lint
	$(AS_USERS) EXAMPLES=12 SEEDS=20 $(BIN)/python -m pytest $(PARALLEL) -m "slow or not slow"

# Measures all tests, and writes down those for which `make test` has no time: see tests/in_ci.py.
long: $(INSTALLED)
	MEASURE=1 $(BIN)/python -m pytest $(PARALLEL) -m "slow or not slow"

# Both ends of the range of versions that work, in a short form: what a new JAX, PyTorch or Python breaks first, one trap
# of each stage, the notebook and the plugin. Each end has a virtual environment of its own.
OLDEST_PYTHON ?= python3.11
NEWEST_PYTHON ?= python3.13
SHORT := tests/test_jaxpr.py tests/test_versions.py tests/test_traps.py \
	tests/test_draws_in_loops.py tests/test_tried_patches.py \
	tests/test_parity.py::test_everything_is_weighed_at_every_step \
	tests/test_pytest_plugin.py::test_a_mismatch_fails_with_its_report

test-oldest: END_PYTHON := $(OLDEST_PYTHON)
test-newest: END_PYTHON := $(NEWEST_PYTHON)
test-oldest test-newest: test-%:
	@if $(END_PYTHON) -c "" 2>/dev/null; \
	then $(MAKE) --no-print-directory $(VENV)-$*/installed END_PYTHON=$(END_PYTHON) && \
		$(AS_USERS) $(VENV)-$*/bin/python -m pytest $(PARALLEL) -m "not slow" $(SHORT); \
	else echo "make $@ is skipped: there is no $(END_PYTHON) here. Name another with $(if $(filter oldest,$*),OLDEST,NEWEST)_PYTHON="; fi

$(VENV)-%/installed: pyproject.toml constraints-%.txt
	$(END_PYTHON) -m venv $(VENV)-$*
	$(VENV)-$*/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(VENV)-$*/bin/python -m pip install --quiet --constraint constraints-$*.txt --editable . --group test
	touch $@

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
	$(BIN)/python -m benchmarks.traps --fixes --processes 2

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
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest $(VENV)-site site
