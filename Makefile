# Two commands do everything on a fresh Linux machine with Python 3.11+ and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)

.PHONY: demo test test-all check lint types format schema structure bench gpu-check fuzz wheel wheel-check clean

demo: $(VENV)/.installed ## three models on one virtual GPU, mixed traffic, a live view
	$(BIN)/llmux demo $(ARGS)

# Two workers more than cores, because integration tests wait for processes much of the time. A worker that has run out
# of tests takes some of another's.
WORKERS ?= $(shell echo $$(($$(nproc) + 2)))
PYTEST := $(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal
# Some images set it. Every worker would then compile all test modules, and every engine llmux.
unexport PYTHONDONTWRITEBYTECODE

test: $(VENV)/.installed-test ## all but the slow tests; ARGS="-k name" narrows it
	$(PYTEST) $(ARGS)

test-all: $(VENV)/.installed-test ## every test, the slow ones too (planted faults, soaks, long seeds)
	LLMUX_HYPOTHESIS_EXAMPLES=$${LLMUX_HYPOTHESIS_EXAMPLES:-60} $(PYTEST) -m "" $(ARGS)

check: lint types ## everything but the tests

CODE := src tests bench scripts hatch_build.py

lint: $(VENV)/.installed-test
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)

types: $(VENV)/.installed-test
	$(BIN)/mypy

format: $(VENV)/.installed-test
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

schema: $(VENV)/.installed ## write the committed JSON schema and the table of options anew
	$(BIN)/llmux schema > config.schema.json
	$(BIN)/python -c "from pathlib import Path; from llmux.config import schema; schema.update_reference(Path('docs/configuration.md'))"

structure: ## write the table of packages into docs/architecture.md, and print the figures; REV=commit compares
	$(PYTHON) scripts/structure.py --write
	$(PYTHON) scripts/structure.py $(REV)

bench: $(VENV)/.installed-test ## figures side by side with nginx; needs nginx, wrk and gcc
	$(BIN)/python bench/gateway/run.py --check
	$(BIN)/python bench/switch/run.py --check
	$(BIN)/python bench/simulate/run.py --check
	$(BIN)/python bench/floods/run.py --check
	$(BIN)/python bench/placement/run.py --minutes 2 --check

# The Python that has PyTorch, for the engines: llmux's own environment has none.
TORCH_PYTHON ?= $(PYTHON)
gpu-check: $(VENV)/.installed-cuda ## a proof on this machine's GPU, 8 minutes; without a network: WHEELS=DIRECTORY
	$(BIN)/python bench/gpu/check.py --engine-python $(TORCH_PYTHON) $(ARGS)

fuzz: $(VENV)/.installed-test ## two minutes of fuzzing what reads HTTP; ARGS="--seconds 3600" for more
	$(INSTALL) -c constraints.txt -e '.[fuzz]'
	$(BIN)/python -m tests.fuzz all $(ARGS)

WHEEL := build/compiled
WHEEL_TESTS := tests/test_compiled_modules.py tests/unit/cli/test_main.py tests/unit/core tests/unit/gateway \
	tests/unit/runtime tests/fuzz tests/simulation/test_core_simulation.py $(wildcard tests/simulation/test_virtual_*.py) \
	$(wildcard tests/unit/simulation/test_*.py) tests/unit/simulation/virtual tests/unit/cli/test_simulate.py \
	$(wildcard tests/integration/test_gateway_*.py) \
	tests/integration/test_faults_of_clients.py

wheel: ## the compiled wheel, in build/compiled, installed in an environment of its own; needs a C compiler
	rm -rf $(WHEEL)
	$(PYTHON) -m venv $(WHEEL)
	LLMUX_COMPILE=1 PIP_CONSTRAINT=$(CURDIR)/constraints.txt \
		$(WHEEL)/bin/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir $(WHEEL)/wheels .
	$(WHEEL)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt "$$(echo $(WHEEL)/wheels/*.whl)[test]"
	$(WHEEL)/bin/llmux --version | grep -F "(compiled)"

# Tests that must replace what is compiled, or count its calls, are skipped and counted; any other skip is a failure.
wheel-check: wheel ## the tests of what is compiled, on the compiled wheel; WHEEL_TESTS=tests for all of them
	LLMUX_CI=1 LLMUX_CI_ALLOWED_SKIPS="$$(printf '%s\n' 'replaces a part of what is compiled' 'counts calls, which' \
		"$$LLMUX_CI_ALLOWED_SKIPS")" \
		$(WHEEL)/bin/pytest --quiet --numprocesses $(WORKERS) --dist worksteal $(WHEEL_TESTS) $(ARGS)

ifdef UV
$(VENV)/bin/python:
	uv venv --quiet --python $(PYTHON) $(VENV)
INSTALL := uv pip install --quiet --python $(BIN)/python
else
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
endif

# What scripts/collect_wheels.py has collected takes the place of the package index.
ifdef WHEELS
INSTALL += --no-index --find-links $(WHEELS)
endif

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-cuda: $(VENV)/.installed
	$(INSTALL) -c constraints.txt -e '.[cuda]'
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(INSTALL) -c constraints.txt -e '.[test,lint]'
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
