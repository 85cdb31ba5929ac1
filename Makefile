# `make` lists the targets. Each one sets up what it needs in .venv; nothing needs root.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Where torch comes from. Empty: the CPU build on Linux without an NVIDIA driver, if its index can be reached, else PyPI.
TORCH_INDEX_URL ?=
CPU_INDEX := https://download.pytorch.org/whl/cpu
OUT ?= out/demo
# The language of the simulated platform: empty for English, or zh.
LANGUAGE ?=
COMMA := ,

.DEFAULT_GOAL := help
.PHONY: help demo test coverage smoke verify lint types bench docs clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'
	@echo
	@echo "  TORCH_INDEX_URL=...  takes torch from there; by default the CPU build where there is no NVIDIA driver"

$(VENV)/.base: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@if [ -n "$(TORCH_INDEX_URL)" ]; then \
	  echo "torch: from $(TORCH_INDEX_URL)"; $(PIP) install -c constraints.txt --index-url $(TORCH_INDEX_URL) torch; \
	elif [ "$$(uname)" = Linux ] && [ ! -e /proc/driver/nvidia/version ] \
	  && $(PIP) install -c constraints.txt --retries 0 --timeout 10 --index-url $(CPU_INDEX) torch 2>/dev/null; then \
	  echo "torch: the CPU build, as there is no NVIDIA driver"; \
	else \
	  echo "torch: from PyPI"; $(PIP) install -c constraints.txt torch; \
	fi
	@touch $@

$(VENV)/.demo$(LANGUAGE): $(VENV)/.base pyproject.toml
	$(PIP) install -c constraints.txt -e '.[demo,serve$(if $(LANGUAGE),$(COMMA)independent)]'
	@touch $@

$(VENV)/.dev: $(VENV)/.base pyproject.toml
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.demo$(LANGUAGE)  ## simulate, mine, train, evaluate; writes out/demo/report.html; in Chinese with LANGUAGE=zh
	$(BIN)/crops demo --out $(OUT) $(if $(LANGUAGE),--language $(LANGUAGE) --size compact)

PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m 'not verify and not smoke'

test: $(VENV)/.dev  ## the test suite
	$(PYTEST)

coverage: $(VENV)/.dev  ## the test suite with coverage: half as long again
	$(PYTEST) --cov --cov-report=term

smoke: $(VENV)/.dev  ## 20,000 items from logs to two evaluated retrievers, in minutes
	$(BIN)/python -m pytest -m smoke

verify: $(VENV)/.dev  ## the slow proofs (record the date in benchmarks/RESULTS.md)
	$(BIN)/python -m pytest -m verify

lint: $(VENV)/.dev  ## ruff and the one-way import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.dev  ## mypy, strict on src/
	$(BIN)/mypy

bench: $(VENV)/.dev  ## the benchmarks; each prints what it measured
	@for script in benchmarks/*/bench_*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

docs: $(VENV)/.dev  ## the documentation site in site/; stops at a broken link
	$(BIN)/python docs/build.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html"

clean:  ## remove the virtual environment and all outputs
	rm -rf $(VENV) out build site
