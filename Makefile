# Two commands do everything on a fresh Linux machine with Python 3.11+ and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)

.PHONY: demo test check lint types format schema reference bench clean

demo: $(VENV)/.installed ## three models on one virtual GPU, mixed traffic, a live view
	$(BIN)/llmux demo $(ARGS)

test: $(VENV)/.installed-test ## the test suite; ARGS="-k name" narrows it
	$(BIN)/pytest $(ARGS)

check: lint types ## everything but the tests

lint: $(VENV)/.installed-test
	$(BIN)/ruff format --check src tests bench
	$(BIN)/ruff check src tests bench

types: $(VENV)/.installed-test
	$(BIN)/mypy

format: $(VENV)/.installed-test
	$(BIN)/ruff format src tests bench
	$(BIN)/ruff check --fix src tests bench

schema reference: $(VENV)/.installed ## write the committed JSON schema and the table of options anew
	$(BIN)/llmux schema > config.schema.json
	$(BIN)/python -c "from pathlib import Path; from llmux.config import reference; reference.update(Path('docs/configuration.md'))"

bench: $(VENV)/.installed-test ## figures side by side with nginx; needs nginx, wrk and gcc
	$(BIN)/python bench/gateway/run.py --check
	$(BIN)/python bench/switch/run.py --check
	$(BIN)/python bench/simulate/run.py --check

ifdef UV
$(VENV)/bin/python:
	uv venv --quiet --python $(PYTHON) $(VENV)
INSTALL := uv pip install --quiet --python $(BIN)/python
else
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
endif

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(INSTALL) -c constraints.txt -e '.[test,lint]'
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
