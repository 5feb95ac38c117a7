# Sourced after venv.sh: runs one command at a time and ends it, and all it started, in good order.
#   run COMMAND...                          a command in a session of its own
#   run_workers COUNT LOG_DIR COMMAND...    COUNT processes of COMMAND (python ...) under msrun, logs in LOG_DIR
#   stop_child                              ends what is running
# Ctrl-C and SIGTERM reach the calling script alone (the child has its own session): it traps them and calls stop_child.

CHILD=""   # the running command
WATCHED="" # it is supervise.py, which ends its workers itself

_descendants() { # processes below $1
    "$PYTHON" - "$1" <<'EOF' 2>/dev/null || true
import psutil, sys
for p in psutil.Process(int(sys.argv[1])).children(recursive=True):
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

stop_child() {
    [ -n "$CHILD" ] || return 0
    local asked="$CHILD" waited=0 pid
    if [ -z "$WATCHED" ]; then asked="$(_descendants "$CHILD") $CHILD"; fi
    kill -TERM $asked 2>/dev/null || true
    while [ $waited -lt 60 ] && _alive $asked; do sleep 1; waited=$((waited + 1)); done
    for pid in $(_descendants "$CHILD") $asked; do kill -KILL "$pid" 2>/dev/null || true; done
    { wait "$CHILD" || true; } 2>/dev/null
    CHILD=""
}

run() {
    local status=0
    WATCHED=""
    setsid "$@" &
    CHILD=$!
    wait "$CHILD" || status=$?
    CHILD=""
    return $status
}

run_workers() {
    local count="$1" logs="$2" status=0
    shift 2
    rm -rf "$logs"
    WATCHED=yes
    setsid "$PYTHON" "$ROOT/launch/supervise.py" --workers "$count" --log-dir "$logs" --grace 45 -- "$@" &
    CHILD=$!
    wait "$CHILD" || status=$?
    CHILD=""
    return $status
}
