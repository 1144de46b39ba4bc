#!/usr/bin/env bash
# Everything that must hold: format, lint, types, import layers, tests. Sets up .venv unless an environment is active.
# usage: bash tests/run.sh [--all] [words of pytest]
#   --all  also the tests marked slow; without words of its own, pytest runs the whole of tests/
# The reference package (cn-clip 1.6.0), against which numbers are compared, is installed by the tests into a folder of
# its own (.venv/reference), never into the environment; CN_CLIP_REFERENCE_DIR names a folder that has it already.
set -euo pipefail

# shellcheck source=run_scripts/_environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/../run_scripts/_environment.sh"
cd "$ROOT"

marks=(-m "not slow")
if [[ ${1:-} == --all ]]; then
    marks=()
    shift
fi

failed=()
step() {  # step NAME COMMAND…: what runs, how long it took, and whether it held; later steps run all the same
    local name=$1 start=$SECONDS
    shift
    echo "== $name: $*"
    if "$@"; then
        echo "== $name: passed in $((SECONDS - start)) s"
    else
        echo "== $name: FAILED after $((SECONDS - start)) s" >&2
        failed+=("$name")
    fi
}

set_up_environment dev,quickstart

# Threads of torch compete with the worker processes of the tests that start several ranks.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)}
step format "$PYTHON" -m ruff format --check .
step lint "$PYTHON" -m ruff check .
step types "$PYTHON" -m mypy
step layers "$PYTHON" -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'
step tests "$PYTHON" -m pytest "${marks[@]}" "$@"

if ((${#failed[@]})); then
    echo "== FAILED: ${failed[*]}, after $SECONDS s" >&2
    exit 1
fi
echo "== all passed in $SECONDS s"
