# Sourced after venv.sh: runs one command at a time and ends it, and all it started, in good order.
#   run COMMAND...                          a command in a session of its own
#   run_workers COUNT LOG_DIR COMMAND...    COUNT processes of COMMAND (python ...) under msrun, logs in LOG_DIR
#   stop_child                              ends what is running
# Ctrl-C and SIGTERM reach the calling script alone (the child has its own session): it traps them and calls stop_child.

CHILD=""   # the running command
WORKERS="" # processes that msrun started for it

# Processes below $1; with $2 only those of that msrun role (MS_WORKER).
_descendants() {
    "$PYTHON" - "$@" <<'EOF' 2>/dev/null || true
import psutil, sys
for p in psutil.Process(int(sys.argv[1])).children(recursive=True):
    if len(sys.argv) < 3 or (p.environ().get("MS_ROLE") == sys.argv[2] and "python" in p.name()):
        print(p.pid)
EOF
}

_alive() { # one of these processes runs (a zombie does not)
    local pid state
    for pid in "$@"; do
        state="$(cut -d ' ' -f 3 "/proc/$pid/stat" 2>/dev/null)" || continue
        [ "$state" = Z ] || return 0
    done
    return 1
}

_kill_all() {
    local pid
    for pid in $(_descendants "$CHILD") $WORKERS $CHILD; do kill -KILL "$pid" 2>/dev/null || true; done
}

stop_child() {
    [ -n "$CHILD" ] || return 0
    local asked waited=0
    # Workers alone are asked: they save and leave together, which needs msrun's scheduler alive until then.
    asked="${WORKERS:-$(_descendants "$CHILD" MS_WORKER)}"
    if [ -n "${asked// /}" ]; then
        kill -STOP "$CHILD" 2>/dev/null || true # msrun would kill the others as soon as one of them has left
    else
        asked="$(_descendants "$CHILD") $CHILD"
    fi
    kill -TERM $asked 2>/dev/null || true
    while [ $waited -lt 45 ] && _alive $asked; do sleep 1; waited=$((waited + 1)); done
    _kill_all
    { wait "$CHILD" || true; } 2>/dev/null
    CHILD="" WORKERS=""
}

run() {
    local status=0
    setsid "$@" &
    CHILD=$!
    wait "$CHILD" || status=$?
    CHILD=""
    return $status
}

run_workers() {
    local count="$1" logs="$2" status=0 idle=0 age=0 port bind=False
    shift 2
    [ "$(nproc)" -lt "$count" ] || bind=True # a core each: a quarter to a third faster
    rm -rf "$logs"
    port="$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
    setsid msrun --worker_num="$count" --local_worker_num="$count" --master_port="$port" --log_dir="$logs" \
        --bind_core="$bind" --join=True --cluster_time_out=600 --tail_worker_log=0 "$@" &
    CHILD=$!
    while _alive "$CHILD"; do
        sleep 1
        age=$((age + 1))
        if [ "$(echo $WORKERS | wc -w)" -lt "$count" ] && [ $age -lt 60 ]; then
            WORKERS="$(echo $WORKERS $(_descendants "$CHILD" MS_WORKER) | tr ' ' '\n' | sort -un | tr '\n' ' ')"
        fi
        # When a worker fails, msrun kills the others at once but then waits for its scheduler, which waits for the
        # workers until its own time limit: after a while there is nothing left to wait for.
        if [ -z "${WORKERS// /}" ] || _alive $WORKERS; then idle=0; else idle=$((idle + 1)); fi
        if [ $idle -ge 40 ]; then _kill_all; fi
    done
    { wait "$CHILD" || status=1; } 2>/dev/null
    CHILD="" WORKERS=""
    [ $status -eq 0 ] || _first_error "$logs"
    return $status
}

# The other workers fail too, later, for want of the first: its log is the one that stopped growing first.
_first_error() {
    local log line
    for log in $(ls -tr "$1"/worker_*.log 2>/dev/null); do
        line="$(grep -nE '^(mindglm: rank .* failed|Traceback)' "$log" | head -n 1 | cut -d : -f 1)"
        if [ -n "$line" ]; then
            echo "-- the first worker that failed: $log" >&2
            tail -n +"$line" "$log" | head -n 60 >&2
            return
        fi
    done
    echo "-- no worker left a traceback; the last lines of $1/worker_0.log:" >&2
    tail -n 5 "$1/worker_0.log" >&2 || true
}
