# Five commands:
#   make results/p1_fig3.png   (or any other file below results/)
#   make env                   (the virtual environment in .venv alone, which all others need)
#   make test
#   make test-slurm            (as root: starts a one-node SLURM here, installs it where missing)
#   make peers                 (kvpress; llama.cpp, compiled for this machine: minutes; docs/peers.md)
PYTHON ?= python3
# Where torch's CPU build is on the index or in a folder of wheels, it is taken.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
# Byte code is kept, or every command would compile the libraries it imports anew.
export PYTHONDONTWRITEBYTECODE :=
export UV_COMPILE_BYTECODE := 1
BIN := .venv/bin

.PHONY: env test test-slurm peers FORCE
.DELETE_ON_ERROR:

results/%: .venv/installed FORCE
	$(BIN)/snakemake --profile local $@

env: .venv/installed

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile rules workflow/Snakefile
	$(BIN)/lint-imports --no-logo
	$(BIN)/snakemake --lint --quiet
	$(BIN)/pytest -m "not slurm" -n 2 --maxschedchunk 1

test-slurm: .venv/installed
	tests/slurm/cluster.sh start
	EMBER_SLURM=1 $(BIN)/pytest tests/slurm

# Compiled once and kept, so that another checkout need not compile again.
PEER_WHEELS ?= $(HOME)/.cache/ember/wheels

peers: .venv-kvpress/installed .venv-llama/installed

# torch's CPU build where it can be had, as in .venv.
.venv-kvpress/installed: constraints-kvpress.txt | .venv/installed
	$(PYTHON) -m venv .venv-kvpress
	$(BIN)/uv pip install --quiet -p .venv-kvpress -c constraints-kvpress.txt torch==2.13.0+cpu 2>/dev/null \
	  || $(BIN)/uv pip install --quiet -p .venv-kvpress -c constraints-kvpress.txt torch
	$(BIN)/uv pip install --quiet -p .venv-kvpress -c constraints-kvpress.txt kvpress
	touch $@

.venv-llama/installed: constraints-llama.txt
	$(PYTHON) -m venv .venv-llama
	.venv-llama/bin/pip wheel --quiet --disable-pip-version-check --find-links "$(PEER_WHEELS)" \
	  --prefer-binary -c constraints-llama.txt -w "$(PEER_WHEELS)" llama-cpp-python
	.venv-llama/bin/pip install --quiet --disable-pip-version-check --no-index \
	  --find-links "$(PEER_WHEELS)" -c constraints-llama.txt llama-cpp-python
	touch $@

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^uv==' constraints.txt)"
	$(BIN)/uv pip install --quiet -p .venv -c constraints.txt torch==2.13.0+cpu 2>/dev/null \
	  || $(BIN)/uv pip install --quiet -p .venv -c constraints.txt torch
	$(BIN)/uv pip install --quiet -p .venv -c constraints.txt -e '.[dev,peers]'
	touch $@

FORCE:
