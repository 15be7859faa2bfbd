# make demo      makes data, trains, samples and evaluates; writes results/demo/report.html
# make test      the fast tests            make test-all   make check, then every test
# make check     ruff and mypy             make format     fix and format the code

PYTHON ?= python3
BIN := .venv/bin
TESTS := $(BIN)/python -m pytest -q -n 2 --dist worksteal

.PHONY: demo test test-all check format clean

demo: .venv/installed
	$(BIN)/python scripts/demo.py

test: .venv/installed
	OMP_NUM_THREADS=1 $(TESTS) -m "not slow"

test-all: check
	OMP_NUM_THREADS=1 $(TESTS)

check: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/check.sh

format: .venv/installed
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

# uv installs torch several times faster than pip.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv results .mypy_cache .pytest_cache .ruff_cache
