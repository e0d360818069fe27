# Everything a fresh machine needs: Python 3.11+ and make. `make demo`, then `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo dev test check docs lock pictures clean

help:
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(VENV)/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

setup: $(VENV)/installed ## make the environment from the lock file

demo: setup ## run the whole graph for the demo city and say where the results are
	$(BIN)/geo-assets demo

dev: setup ## open the Dagster UI on http://127.0.0.1:3000
	$(BIN)/geo-assets dev

check: setup ## format, lint, types, definitions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/geo-assets definitions

test: check ## everything: check, then all tests (the demo, chaos and browser tests too)
	$(BIN)/python -m pytest -n 2 --dist loadgroup

docs: setup ## write the pages of settings and commands, build docs/ into site/ and check every link
	$(BIN)/python tools/settings_page.py
	$(BIN)/python tools/commands_page.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

pictures: setup ## make the pictures of the README from the demo
	$(BIN)/python tools/pictures.py

lock: setup ## renew the lock file (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-strip-extras \
		--group dev pyproject.toml -o requirements.lock

clean: ## remove what the demo and the tests made
	rm -rf lake .dagster .demo site .pytest_cache .ruff_cache
