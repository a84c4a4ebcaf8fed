# `make quickstart` runs the main job, `make test` the tests; both make the environment if it is not there.
# `make slow` runs the tests that `make test` leaves out, `make test-all` both in one go;
# `make check FILE=nc_finetune/heads/cosine.py` those of one module, with WATCH=1 whenever it or they change.
# `make docs` builds the pages of docs/ into site/, `make dist` wheel and source distribution into dist/.
PYTHON ?= python3
VENV ?= .venv
OUT ?= runs/quickstart
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# A worker that is done takes tests over from another: files differ a hundredfold in what their tests take.
TESTS := $(BIN)/python -m pytest -n logical --dist worksteal

.PHONY: quickstart test slow test-all check lint docs dist clean

quickstart: $(INSTALLED)
	$(BIN)/nc-finetune tune sklearn:digits --test 0.2 --minutes 0.5 --out $(OUT)/tuned
	$(BIN)/nc-finetune benchmark recipes/quickstart.yaml --out $(OUT)

test: $(INSTALLED)
	$(TESTS)

slow: $(INSTALLED)
	$(TESTS) -m slow

test-all: $(INSTALLED)
	$(TESTS) -m "slow or not slow"

check: $(INSTALLED)
	$(BIN)/python tests/check.py $(FILE) $(if $(WATCH),--watch)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

dist: $(VENV)/.installed-dev
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/.installed-%: $(INSTALLED)
	$(BIN)/pip install --quiet --editable '.[$*]'
	touch $@

clean:
	rm -rf $(VENV)
