#!/usr/bin/env bash
# Check lint rules, formatting and types. `make check` adds the tools of .venv to PATH.
set -eu
cd "$(dirname "$0")/.."
ruff check .
ruff format --check .
mypy vidm scripts benchmarks
