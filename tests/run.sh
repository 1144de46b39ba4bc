#!/usr/bin/env bash
# Everything that must hold: format, lint, types, import layers, tests. Sets up .venv unless an environment is active.
# usage: bash tests/run.sh [--quick | --all] [words of pytest]
#   --quick  without the tests marked slow, for the time between two edits
#   --all    with the tests marked exhaustive, which take many minutes and are left out otherwise
# The reference package (cn-clip 1.6.0), against which numbers are compared, is installed by the tests into a folder of
# its own (.venv/reference), never into the environment; CN_CLIP_REFERENCE_DIR names a folder that has it already.
set -euo pipefail

# shellcheck source=run_scripts/_environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/../run_scripts/_environment.sh"
cd "$ROOT"

marks=()
case ${1:-} in
    --quick)
        marks=(-m "not slow")
        shift
        ;;
    --all)
        marks=(--exhaustive)
        shift
        ;;
esac

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

step format "$PYTHON" -m ruff format --check .
step lint "$PYTHON" -m ruff check .
step types "$PYTHON" -m mypy
step layers "$PYTHON" -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'
step tests "$PYTHON" -m pytest --durations=15 "${marks[@]}" "$@"

if ((${#failed[@]})); then
    echo "== FAILED: ${failed[*]}, after $SECONDS s" >&2
    exit 1
fi
echo "== all passed in $SECONDS s"
