# `make quickstart` runs the main job, `make test` the tests; both make the environment if it is not there.
PYTHON ?= python3
VENV ?= .venv
OUT ?= runs/quickstart
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: quickstart test lint clean

quickstart: $(INSTALLED)
	$(BIN)/nc-finetune benchmark recipes/quickstart.yaml --out $(OUT)

test: $(INSTALLED)
	$(BIN)/python -m pytest -n logical --dist loadgroup

lint: $(INSTALLED)
	$(BIN)/pip install --quiet --editable '.[dev]'
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV)
