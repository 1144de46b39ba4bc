# shellcheck shell=bash
# Sourced: which Python runs, and how the checkout gets a virtual environment of its own.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() {  # one sentence, and the exit code that commands use for what a person can mend
    echo "error: $*" >&2
    exit 2
}

# The active environment's Python, else that of the checkout's .venv, else the system's; $PYTHON wins over all.
find_python() {
    if [[ -n ${PYTHON:-} ]]; then
        echo "$PYTHON"
    elif [[ -z ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} && -x $ROOT/.venv/bin/python ]]; then
        echo "$ROOT/.venv/bin/python"
    else
        command -v python3 || fail "there is no python3 on PATH: install Python 3.11 or newer"
    fi
}

# set_up_environment EXTRAS: an active virtual environment or .venv with `pip install -e .[EXTRAS]`; sets PYTHON.
# Installs again only when setup.py or the extras changed, so a second run starts at once and needs no network.
# On Linux pip takes the CUDA build of torch; on a machine without a GPU the CPU build is far smaller:
#   PIP_EXTRA_INDEX_URL=... bash run_scripts/quickstart.sh, with the index that https://pytorch.org/get-started names
set_up_environment() {
    local extras=$1 python stamp
    if [[ -z ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} && ! -x $ROOT/.venv/bin/pip ]]; then
        python=${PYTHON:-$(command -v python3)} || fail "there is no python3 on PATH: install Python 3.11 or newer"
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
            fail "$python is older than Python 3.11: name a newer one, as in PYTHON=python3.12 bash $0"
        echo "== virtual environment $ROOT/.venv"
        "$python" -m venv "$ROOT/.venv" || fail "cannot make $ROOT/.venv: install Python's venv module (python3-venv)"
    fi
    PYTHON=$(PYTHON='' find_python) || exit 2
    stamp="$("$PYTHON" -c 'import sys; print(sys.prefix)')/.cn_clip-$extras"
    if [[ "$ROOT $(cksum <"$ROOT/setup.py")" != "$(cat "$stamp" 2>/dev/null)" ]]; then
        echo "== pip install -e .[$extras] with $PYTHON"
        "$PYTHON" -m pip install --quiet --disable-pip-version-check -e "${ROOT}[$extras]" ||
            fail "pip could not install the package: read its message above, mend that and run this again"
        echo "$ROOT $(cksum <"$ROOT/setup.py")" >"$stamp"
    fi
}
