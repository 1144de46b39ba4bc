# shellcheck shell=bash
# Sourced by the run scripts: the one place that knows torchrun, machines, ranks and ports.
#
# From the environment, else from the line at the top of the script:
#   WORKER_CNT     machines
#   GPUS_PER_NODE  processes on each machine; `auto`: one for each GPU, one without a GPU. On a CPU machine that many
#                  processes talk through gloo.
#   MASTER_ADDR    address of machine 0; `localhost` only for a single machine
#   MASTER_PORT    port of machine 0; `auto`: 8514, on a single machine any free one
#   RANK           number of this machine, 0 to WORKER_CNT - 1
#   MAX_RESTARTS, STOPPED_EXIT_CODE: see _supervise.sh
# Run the same script on every machine, each with its RANK.

# shellcheck source=run_scripts/_environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
# shellcheck source=run_scripts/_supervise.sh
source "$(dirname "${BASH_SOURCE[0]}")/_supervise.sh"

DEFAULT_PORT=8514

# finetune CONFIG DATAPATH [flags of cn_clip/training/main.py]
finetune() {
    local config=$1 usage
    usage="usage: bash $0 DATAPATH [flags of cn_clip/training/main.py]"
    shift
    [[ $# -ge 1 && $1 != -* ]] || fail "$usage"
    [[ -d $1 ]] || fail "DATAPATH is $1, which is not a folder; $usage"
    DATAPATH=$(cd "$1" && pwd)
    export DATAPATH
    shift
    launch "$ROOT/cn_clip/training/main.py" --config "$ROOT/configs/$config" "$@"
}

# launch SCRIPT [flags]: SCRIPT in one process, or in GPUS_PER_NODE processes on each of WORKER_CNT machines.
launch() {
    local python processes alone
    python=$(find_python) || exit 2
    # This checkout first, so that an older installed cn_clip cannot take its place.
    export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
    check_machines
    processes=$(processes_here "$python") || exit 2
    if ((WORKER_CNT * processes == 1)); then
        echo "launch: 1 process: $1"
        # A RANK left from the caller's environment must not make the one process wait for others.
        alone=(env -u RANK -u WORLD_SIZE -u LOCAL_RANK -u MASTER_ADDR -u MASTER_PORT "$python" -u "$@")
        if ((${MAX_RESTARTS:-0} == 0)) && [[ ${STOPPED_EXIT_CODE:-75} == 75 ]]; then
            exec "${alone[@]}"
        fi
        supervise process "${alone[@]}"
    fi
    MASTER_PORT=$(meeting_port "$python") || exit 2
    # torchrun would give each process one core's thread; on a CPU machine that leaves cores idle.
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(("$(nproc)" > processes ? "$(nproc)" / processes : 1))}
    echo "launch: $processes processes on each of $WORKER_CNT machines, here machine $RANK," \
        "meeting at $MASTER_ADDR:$MASTER_PORT: $1"
    # `--` ends torchrun's own flags: without it Python 3.11 reads the script's --logs as an abbreviation of --logs-specs.
    supervise torchrun "$python" -m torch.distributed.run --nnodes="$WORKER_CNT" --node_rank="$RANK" \
        --nproc_per_node="$processes" --master_addr="$MASTER_ADDR" --master_port="$MASTER_PORT" -- "$@"
}

check_machines() {
    local name
    for name in WORKER_CNT RANK MAX_RESTARTS STOPPED_EXIT_CODE; do
        [[ ${!name:-0} =~ ^[0-9]+$ ]] || fail "$name is '${!name}'; give a whole number"
    done
    ((WORKER_CNT >= 1)) || fail "WORKER_CNT is $WORKER_CNT; give the number of machines, 1 or more"
    ((RANK < WORKER_CNT)) || fail "RANK is $RANK with WORKER_CNT=$WORKER_CNT; machines are numbered 0 to WORKER_CNT - 1"
    if ((WORKER_CNT > 1)) && [[ $MASTER_ADDR == localhost || $MASTER_ADDR == 127.* || $MASTER_ADDR == *X* ]]; then
        fail "MASTER_ADDR is $MASTER_ADDR with WORKER_CNT=$WORKER_CNT; give the address of machine 0 on every machine"
    fi
    if [[ $MASTER_ADDR == localhost ]]; then
        MASTER_ADDR=127.0.0.1  # one meaning everywhere; localhost may resolve to ::1
    fi
}

processes_here() {
    local python=$1
    if [[ $GPUS_PER_NODE == auto ]]; then
        gpus_here "$python"
    elif [[ $GPUS_PER_NODE =~ ^[1-9][0-9]*$ ]]; then
        echo "$GPUS_PER_NODE"
    else
        fail "GPUS_PER_NODE is '$GPUS_PER_NODE'; give auto or the number of processes on each machine, 1 or more"
    fi
}

# At least 1. torch has the last word (CUDA_VISIBLE_DEVICES, a CPU build), and is asked only where a driver is.
gpus_here() {
    if [[ $(nvidia-smi -L 2>/dev/null) == GPU* ]] || command -v rocm-smi >/dev/null; then
        "$1" -c 'import torch; print(max(1, torch.cuda.device_count()))'
    else
        echo 1
    fi
}

meeting_port() {
    local python=$1 port=$MASTER_PORT
    if [[ $port == auto ]] && ((WORKER_CNT == 1)); then
        free_port "$python"  # not a fixed one: two runs that start in one second would both find it free
        return
    elif [[ $port == auto ]]; then
        port=$DEFAULT_PORT
    elif [[ ! $port =~ ^[1-9][0-9]{0,4}$ ]] || ((port > 65535)); then
        fail "MASTER_PORT is '$port'; give auto or a port, 1 to 65535"
    fi
    if ((RANK > 0)) || port_is_free "$python" "$port"; then
        echo "$port"
    else
        fail "port $port is in use on this machine: set MASTER_PORT to a free one, for example $(free_port "$python")," \
            "on every machine"
    fi
}

port_is_free() {  # SO_REUSEADDR as the store sets it: a port that a finished run left in TIME_WAIT is free
    "$1" - "$2" <<'PY'
import socket, sys
with socket.socket() as probe:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind(("", int(sys.argv[1])))
    except OSError:
        sys.exit(1)
PY
}

free_port() {
    "$1" -c 'import socket; probe = socket.socket(); probe.bind(("", 0)); print(probe.getsockname()[1])'
}
