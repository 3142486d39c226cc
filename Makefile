# `make lab` and `make test` set up everything they need; see README.md.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
# Containers run as root, where Jupyter wants to be told that this is meant.
ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)
# Threads that wait for each other burn a whole core, for long, unless told to give up early: two
# notebooks at once are then faster, one alone as fast as before (benchmarks/threads.py measures it).
export GOMP_SPINCOUNT ?= 2000

.PHONY: help lab test oldest soak notebooks gallery bench lint clean

help:
	@echo "make lab        open the notebooks in JupyterLab  (ARGS=\"--no-browser --port 8899\")"
	@echo "make test       run all tests, every notebook among them  (ARGS=\"-k network\")"
	@echo "make oldest     run the tests with the oldest versions allowed  (PYTHON=python3.10)"
	@echo "make soak       run all notebooks five times in random order, two at once; takes hours"
	@echo "make notebooks  run all notebooks again and store their outputs  (ARGS='notebooks/04*.ipynb')"
	@echo "make gallery    paint the recipes whose picture is missing or outdated  (ARGS=great_wave)"
	@echo "make bench      measure speed and memory"
	@echo "make lint       check and format code and notebooks"
	@echo "make clean      remove the environment and all caches"

# Without the second option, a photograph of more than 10 MB that is uploaded into a notebook is lost
# without a word, for the connection to the kernel breaks.
lab: $(READY)
	$(BIN)/jupyter lab $(ROOT) --ServerApp.ip=127.0.0.1 \
		--ServerApp.tornado_settings="{'websocket_max_message_size': 300_000_000}" \
		--LabApp.default_url=/lab/tree/notebooks $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest $(ARGS)

# An environment of its own, so that the usual one stays as it is. Old versions warn about the new
# ones of packages they are built on; here that is no error.
oldest:
	$(PYTHON) -m venv .venv-oldest
	$(PYTHON) tests/oldest.py > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check \
		-c .venv-oldest/constraints.txt -e ".[test]"
	.venv-oldest/bin/python -m pytest -W default $(ARGS)

soak: $(READY)
	$(BIN)/python tests/soak.py $(ARGS)

notebooks: $(READY)
	$(BIN)/python tests/run_notebooks.py $(ARGS)

gallery: $(READY)
	$(BIN)/python images/make_gallery.py $(ARGS)

bench: $(READY)
	$(BIN)/python benchmarks/compare.py $(ARGS)

lint: $(READY)
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean:
	rm -rf .venv .venv-oldest nst_helpers.egg-info build out .pytest_cache .ruff_cache
	find . -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

# Installed once, and again whenever pyproject.toml is newer than the last installation.
$(READY): pyproject.toml
	@$(PYTHON) -c "" 2>/dev/null || { echo "No Python found as '$(PYTHON)': install Python 3.10 or newer, or name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || { echo "$$($(PYTHON) --version) is too old: install Python 3.10 or newer, and name it: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c "import venv, ensurepip" 2>/dev/null || { echo "This Python cannot make environments: install its venv module (on Debian and Ubuntu: sudo apt install python3-venv) and try again" >&2; exit 1; }
	@echo "Installing into .venv: PyTorch is large, this takes a few minutes (once)."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	@touch $@
