#!/usr/bin/env bash
# Lint, formatting and types. `make check` puts the tools of .venv on PATH.
set -eu
cd "$(dirname "$0")/.."
ruff check .
ruff format --check .
mypy vidm scripts benchmarks
