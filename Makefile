# `make lab` and `make test` set up everything they need; see README.md.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
# As root, for example in a container, Jupyter starts only with this option.
ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)
# By default, threads that wait for each other keep their cores busy for a long time. Two notebooks
# that run at once then take several times as long. With this setting, threads stop spinning early.
export GOMP_SPINCOUNT ?= 2000
# `make lint` fixes most of what these two commands report.
STYLE := $(BIN)/ruff check . && $(BIN)/ruff format --check .

.PHONY: help lab check test oldest notebooks pictures html handout bench lint clean

help:
	@echo "make lab        open the notebooks in JupyterLab  (ARGS=\"--no-browser --port 8899\")"
	@echo "make check      check the style and run the quick tests, in a minute and a half  (ARGS=\"-k network\")"
	@echo "make test       check the style, run all tests, every notebook and the browser tests, in twelve to twenty-five minutes"
	@echo "make oldest     run all tests with the oldest package versions allowed  (PYTHON=python3.10)"
	@echo "make notebooks  run all notebooks in fresh kernels and store their outputs  (ARGS='notebooks/04*.ipynb')"
	@echo "make pictures   paint the pictures of gallery and figures that are missing or have new settings  (ARGS=boats)"
	@echo "make html       write the notebooks as web pages into html/"
	@echo "make handout    write the notebooks without outputs and solutions into handout/"
	@echo "make bench      measure speed and memory beside other programs"
	@echo "make lint       check, fix and format code and notebooks"
	@echo "make clean      remove the environments, the caches, html/, handout/ and out/"

# Without the second option, uploading a photograph of more than 10 MB into a notebook breaks the
# connection to the kernel without an error message.
lab: $(READY)
	$(BIN)/jupyter lab $(ROOT) --ServerApp.ip=127.0.0.1 \
		--ServerApp.tornado_settings="{'websocket_max_message_size': 300_000_000}" \
		--LabApp.default_url=/lab/tree/notebooks $(ARGS)

check: $(READY)
	$(STYLE)
	$(BIN)/python -m pytest tests -m "not slow" --ignore=tests/test_browser.py $(ARGS)

test: $(READY)
	$(STYLE)
	$(BIN)/python -m pytest $(ARGS)

# A second environment, so that .venv stays as it is. Old packages warn about newer ones that they
# import; with -W default these warnings are not errors.
oldest:
	$(PYTHON) -m venv .venv-oldest
	$(PYTHON) tests/oldest.py > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check \
		-c .venv-oldest/constraints.txt -e ".[test]"
	.venv-oldest/bin/python -m pytest -W default $(ARGS)

notebooks: $(READY)
	$(BIN)/python tests/run_notebooks.py $(ARGS)

pictures: $(READY)
	$(BIN)/python images/make_pictures.py $(ARGS)

html handout: $(READY)
	$(BIN)/python teaching/export.py $@

bench: $(READY)
	$(BIN)/python benchmarks/compare.py

lint: $(READY)
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean:
	rm -rf .venv .venv-oldest nst_helpers.egg-info build out html handout .pytest_cache .ruff_cache
	find . -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

# Installs once, and again if pyproject.toml is newer than the last installation.
$(READY): pyproject.toml
	@$(PYTHON) -c "" 2>/dev/null || { echo "No Python found as '$(PYTHON)': install Python 3.10 or newer, or name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || { echo "$$($(PYTHON) --version) is too old: install Python 3.10 or newer, and name it: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c "import venv, ensurepip" 2>/dev/null || { echo "This Python cannot make environments: install its venv module (on Debian and Ubuntu: sudo apt install python3-venv) and try again" >&2; exit 1; }
	@echo "Installing into .venv. PyTorch is large, so this takes a few minutes the first time."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	@touch $@
