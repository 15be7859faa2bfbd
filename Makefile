# make demo      makes data, trains, samples and evaluates; writes results/demo/report.html
# make test      the fast tests            make test-all   make check, then every test
# make notebook  runs examples/quickstart.ipynb and stores its outputs
# make check     ruff and mypy             make format     fix and format the code
# make lock      writes constraints.txt, the versions that are installed, anew; CONSTRAINTS= installs the newest ones

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
BIN := .venv/bin
TESTS := $(BIN)/python -m pytest -q -n 2 --dist worksteal

.PHONY: demo notebook test test-all check format lock clean

demo: .venv/installed
	$(BIN)/python scripts/demo.py

notebook: .venv/installed
	$(BIN)/python scripts/run_notebook.py examples/quickstart.ipynb

test: .venv/installed
	OMP_NUM_THREADS=1 $(TESTS) -m "not slow"

test-all: check
	OMP_NUM_THREADS=1 $(TESTS)

check: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/check.sh

format: .venv/installed
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

lock: .venv/installed
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.10 --extra dev --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links --output-file constraints.txt pyproject.toml

# uv installs torch several times faster than pip.
.venv/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS:%=--constraint %) uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[dev]' \
		$(CONSTRAINTS:%=--constraints %) $(CONSTRAINTS:%=--build-constraints %)
	touch $@

clean:
	rm -rf .venv results .mypy_cache .pytest_cache .ruff_cache
