#!/usr/bin/env bash
# Runs a command under msrun, called as mindformers' scripts/msrun_launcher.sh is:
#   bash launch/msrun_launcher.sh "COMMAND"                                                            8 workers
#   bash launch/msrun_launcher.sh "COMMAND" WORKER_NUM
#   bash launch/msrun_launcher.sh "COMMAND" WORKER_NUM MASTER_PORT LOG_DIR JOIN CLUSTER_TIME_OUT
#   bash launch/msrun_launcher.sh "COMMAND" WORKER_NUM LOCAL_WORKER MASTER_ADDR MASTER_PORT NODE_RANK LOG_DIR JOIN \
#       CLUSTER_TIME_OUT                                                                               on each node
# COMMAND: "mindglm train recipes/nano/dit.yaml parallel_config.data_parallel=8", "python -m ...", or "script.py ...".
# Defaults as there: port 8118, logs output/msrun_log/worker_<rank>.log, JOIN False, time-out 7200 s.
# JOIN False returns at once; the job goes on in the background, watched all the same: LOG_DIR/launcher.log.
# JOIN True waits, shows all workers' logs, and returns their exit code. Failures and signals: see supervise.py.
# Also read, as there: MF_LOG_SUFFIX (of output/log), PLOG_REDIRECT_TO_OUTPUT=True (CANN's logs to output/plog).
set -euo pipefail
WORKERS=8 LOCAL=8 ADDRESS=127.0.0.1 PORT=8118 NODE=0 LOGS=output/msrun_log JOIN=False TIME_OUT=7200
case $# in
1) ;;
2) WORKERS="$2" LOCAL="$2" ;;
6) WORKERS="$2" LOCAL="$2" PORT="$3" LOGS="$4" JOIN="$5" TIME_OUT="$6" ;;
9) WORKERS="$2" LOCAL="$3" ADDRESS="$4" PORT="$5" NODE="$6" LOGS="$7" JOIN="$8" TIME_OUT="$9" ;;
*)
    echo "mindglm: msrun_launcher.sh takes 1, 2, 6 or 9 arguments, $# were given:" >&2
    sed -n '3,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
for name in WORKERS LOCAL PORT NODE TIME_OUT; do
    case "${!name}" in '' | *[!0-9]*)
        echo "mindglm: ${!name} stands where a number is expected ($name); the order of arguments is:" >&2
        sed -n '3,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
        exit 2
        ;;
    esac
done
if [ "$WORKERS" -lt 2 ]; then
    echo "mindglm: $WORKERS worker: msrun is for several. Call it alone: $1" >&2
    exit 2
fi
if [ "$LOCAL" -lt 1 ] || [ $((WORKERS % LOCAL)) -ne 0 ]; then
    echo "mindglm: WORKER_NUM $WORKERS is no multiple of LOCAL_WORKER $LOCAL; every node has as many workers" >&2
    exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

export LOG_MF_PATH="$PWD/output/log${MF_LOG_SUFFIX:+_$MF_LOG_SUFFIX}"
case "${PLOG_REDIRECT_TO_OUTPUT:-False}" in [Tt]rue) export ASCEND_PROCESS_LOG_PATH="$PWD/output/plog" ;; esac
ulimit -u unlimited 2>/dev/null || true # not allowed everywhere, seldom needed

# msrun puts "python" before whatever is not python itself.
eval "COMMAND=($1)"
if [ "${COMMAND[0]}" = mindglm ]; then COMMAND=(python -m "${COMMAND[@]}"); fi
SUPERVISE=("$PYTHON" "$ROOT/launch/supervise.py" --workers "$WORKERS" --nodes $((WORKERS / LOCAL)) --node-rank "$NODE"
    --master-addr "$ADDRESS" --master-port "$PORT" --log-dir "$LOGS" --cluster-time-out "$TIME_OUT")
case "$JOIN" in
[Tt]rue)
    exec "${SUPERVISE[@]}" --tail "$(seq -s , $((NODE * LOCAL)) $((NODE * LOCAL + LOCAL - 1)))" -- "${COMMAND[@]}"
    ;;
[Ff]alse) ;;
*)
    echo "mindglm: JOIN is $JOIN; expected True or False" >&2
    exit 2
    ;;
esac
mkdir -p "$LOGS"
setsid "${SUPERVISE[@]}" --tail "" -- "${COMMAND[@]}" < /dev/null > "$LOGS/launcher.log" 2>&1 &
echo "mindglm: the job runs in the background (process $!). Logs: $LOGS/worker_<rank>.log; what became of it:" \
    "$LOGS/launcher.log. To stop it in good order: kill $!"
