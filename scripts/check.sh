#!/usr/bin/env bash
# The checkers: lint, format, types. `make check` puts .venv's tools on PATH.
set -eu
cd "$(dirname "$0")/.."
ruff check .
ruff format --check .
mypy vidm scripts benchmarks
