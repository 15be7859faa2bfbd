#!/usr/bin/env bash
# Check lint rules, formatting, types and shell scripts. `make check` adds the tools of .venv to PATH.
set -eu
cd "$(dirname "$0")/.."
ruff check .
ruff format --check .
mypy vidm scripts benchmarks
shellcheck -x scripts/*.sh scripts/train.sbatch
