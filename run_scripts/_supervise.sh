# shellcheck shell=bash
# Sourced by _launch.sh: what was started is watched to its end, told of signals, and started again when it failed.
#
# From the environment:
#   MAX_RESTARTS       how often a run that failed is started again on this machine; 0 (the default): never
#   STOPPED_EXIT_CODE  what a run that was stopped by a signal and has saved ends with; 75 (EX_TEMPFAIL: try again later)
#
# Between launcher and training:
#   CN_CLIP_EXIT_MARKER  a path. A training process that ends on purpose writes its exit code there, one process on each
#                        machine, since torchrun ends with 1 whatever the codes of its workers are.
#   CN_CLIP_RESTART      how often this run has been started again, from 0
#
# TERM, INT, USR1 and HUP go to the training processes and not to torchrun, which gives its workers 30 s and then kills them.
# How long a save may take is the cluster's to say. A second INT (Ctrl-C) ends the training processes at once.

STOPPED=75  # EXIT_PREEMPTED of cn_clip/errors.py

# supervise process|torchrun COMMAND…: COMMAND to its end, with its restarts; ends this shell with the exit code.
supervise() {
    supervised_kind=$1 supervised='' stop_signal='' nudging=''
    shift
    local code name restarts=0 most=${MAX_RESTARTS:-0}
    # Job control below gives what is started a process group of its own: Ctrl-C reaches this shell alone.
    for name in TERM INT USR1 HUP; do
        # shellcheck disable=SC2064  # the name of now
        trap "pass_on $name" "$name"
    done
    marker_folder=$(mktemp -d "${TMPDIR:-/tmp}/cn_clip.XXXXXX") || fail "cannot make a folder in ${TMPDIR:-/tmp}"
    trap 'rm -rf "$marker_folder"' EXIT
    export CN_CLIP_EXIT_MARKER=$marker_folder/exit_code CN_CLIP_RESTART=0
    die_with_launcher=()
    if [[ $(setpriv --help 2>/dev/null) == *--pdeathsig* ]]; then
        die_with_launcher=(setpriv --pdeathsig TERM)
    fi
    # for a signal that reaches torchrun itself: on Slurm every process of a job may get it
    export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}
    while :; do
        rm -f "$CN_CLIP_EXIT_MARKER"
        code=0
        run_once "$@" || code=$?
        [[ ! -s $CN_CLIP_EXIT_MARKER ]] || code=$(<"$CN_CLIP_EXIT_MARKER")
        # 2: a setting or file that a person has to mend
        if ((code == 0 || code == 2 || code == STOPPED || restarts == most)) || [[ $stop_signal ]]; then
            break
        fi
        restarts=$((restarts + 1))
        CN_CLIP_RESTART=$restarts
        echo "launch: training ended with exit code $code: restart $restarts of $most" >&2
        pause_before_restart
        [[ ! $stop_signal ]] || break
    done
    if ((code == STOPPED)); then
        # after torchrun's report of failed processes, which it prints for every code but 0
        echo "launch: training was told to stop and has saved; its own last line says how it goes on" >&2
        code=${STOPPED_EXIT_CODE:-$STOPPED}
    elif [[ $stop_signal && ! -s $CN_CLIP_EXIT_MARKER ]] && ((code != 0)); then
        code=$((128 + $(kill -l "$stop_signal")))  # as a shell reports what a signal ended
    fi
    exit "$code"
}

run_once() {
    local code=0
    set -m
    start "$@" &
    supervised=$!
    set +m
    [[ ! $stop_signal ]] || pass_on "$stop_signal"  # it came a moment before
    # a trapped signal ends `wait`, not the child
    while
        wait "$supervised"
        kill -0 "$supervised" 2>/dev/null
    do :; done
    wait "$supervised" || code=$?
    supervised=''
    if [[ $nudging ]]; then
        kill "$nudging" 2>/dev/null || true
    fi
    ((code <= 128)) || end_leftovers
    return "$code"
}

# In the background shell: become COMMAND. Until training takes it, USR1 is ignored, or it would end torchrun and a Python
# that is still importing. The death of this launcher, even by KILL, stops what it started where setpriv is (Linux).
start() {
    trap - TERM INT HUP EXIT
    trap '' USR1
    exec ${die_with_launcher[@]+"${die_with_launcher[@]}"} "$@"
}

# pass_on SIGNAL to the training processes.
pass_on() {
    local processes again=$stop_signal
    stop_signal=$1
    [[ $supervised ]] || return 0
    processes=$(training_processes)
    if [[ ! $processes ]]; then  # torchrun that waits for other machines: there is nothing to save
        kill -TERM "$supervised" 2>/dev/null || true
    elif [[ $1 == INT && $again == INT ]]; then
        signal_all KILL "$processes"
    else
        signal_all "$1" "$processes"
    fi
    if [[ $1 == USR1 && ! $nudging ]]; then
        nudge &>/dev/null &
        nudging=$!
    fi
}

signal_all() {  # SIGNAL "PIDS"
    # shellcheck disable=SC2086  # one word a process
    kill -s "$1" $2 2>/dev/null || true
}

nudge() {  # USR1 again and again: a process that was still importing has ignored the first
    trap - TERM INT USR1 HUP EXIT
    while sleep 2; do
        signal_all USR1 "$(training_processes)"
    done
}

training_processes() {
    if [[ $supervised_kind == process ]]; then
        echo "$supervised"
    elif [[ -r /proc/$supervised/task/$supervised/children ]]; then
        cat "/proc/$supervised/task/"*/children 2>/dev/null || true
    else
        pgrep -P "$supervised" || true
    fi
}

# Workers of a torchrun that was killed live on; they are known by their marker (Linux).
end_leftovers() {
    local environ
    for environ in $(env -u CN_CLIP_EXIT_MARKER grep -lszF "CN_CLIP_EXIT_MARKER=$CN_CLIP_EXIT_MARKER" \
        /proc/[0-9]*/environ 2>/dev/null); do
        environ=${environ#/proc/}
        kill -KILL "${environ%/environ}" 2>/dev/null || true
    done
}

# Machine 0, where the others meet, goes first.
pause_before_restart() {
    sleep $((RANK == 0 ? 2 : 8)) &>/dev/null &
    wait $! || true
}
