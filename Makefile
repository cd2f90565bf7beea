# Two commands do the work: `make demo` and `make test`. Both build .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=
STAMP := $(VENV)/.installed
TRL_VENV := .venv-trl
TRL_STAMP := $(TRL_VENV)/.installed
BENCH_ARGS ?=

.PHONY: help demo test test-slow lint format constraints trl bench-step clean

help:
	@echo "make demo       train with a per-prompt budget and uniformly, and compare (runs/demo)"
	@echo "make test       lint, types and tests"
	@echo "make test-slow  the tests that take minutes"
	@echo "make format     reformat the sources"
	@echo "make constraints  write the versions installed in $(VENV) to constraints.txt"
	@echo "make trl        build $(TRL_VENV), which holds TRL for a benchmark"
	@echo "make bench-step training steps against TRL's; BENCH_ARGS: of benchmarks/step.py"
	@echo "make clean      remove $(VENV), $(TRL_VENV) and caches"

$(STAMP): pyproject.toml constraints.txt
	@echo "Installing into $(VENV); this takes a minute or two the first time."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/python examples/demo.py $(DEMO_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -q -n auto

test-slow: $(STAMP)
	$(BIN)/pytest -q -n auto -m slow

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints: $(STAMP)
	echo "# Exact versions of everything \`make\` installs; written by \`make constraints\`." > constraints.txt
	$(BIN)/python -m pip freeze --exclude-editable | sed "s/+cpu\$$//" >> constraints.txt

# TRL stands apart: it must not decide which versions dibs is tested with.
$(TRL_STAMP): requirements/trl.txt
	@echo "Installing TRL into $(TRL_VENV); this takes a minute or two the first time."
	$(PYTHON) -m venv $(TRL_VENV)
	$(TRL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/trl.txt
	touch $@

trl: $(TRL_STAMP)

bench-step: $(STAMP) $(TRL_STAMP)
	$(BIN)/python benchmarks/step.py $(BENCH_ARGS)

clean:
	rm -rf $(VENV) $(TRL_VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
