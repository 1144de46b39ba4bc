#!/usr/bin/env bash
# The proof on a machine with GPUs: whether what the tests hold on CPU holds there, how fast it is, and a report to paste.
# usage: bash tests/gpu.sh [--size tiny|real] [--only CHECK,…] [--report FILE] [--device cuda|cpu]
# Without a GPU the same checks run on the CPU with tiny towers, as far as they can, and say so. Exit code 1: a check failed.
set -euo pipefail

# shellcheck source=run_scripts/_environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/../run_scripts/_environment.sh"
python=$(find_python) || exit 2
# tests/gpu is the package `gpu`
export PYTHONPATH="$ROOT:$ROOT/tests${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" "$ROOT/tests/gpu/prove.py" "$@"
