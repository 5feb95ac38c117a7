#!/usr/bin/env bash
# Before queueing for a cluster: runs a recipe's pipeline here on CPU; widths shrunk; depth, cuts, schedule, names kept.
#   bash launch/rehearse.sh RECIPE [options] [key=value ...]
#   bash launch/rehearse.sh recipes/glm_image/ar_9b_pretrain_256.yaml parallel_config.pipeline_stage=8
# Starts all pipeline ranks of one column (--data-parallel 2: of two) for a few steps with real transport and made-up
# samples, then prints plan against rehearsal: names and shapes, stage balance, messages, their sizes, the schedule.
# Exit code: 0 all as planned, 1 something differs or failed, 2 a mistake in the recipe.
# Options (all: --help): --steps N, --micro-batches N, --height H --width W (of the samples to balance for),
# --output DIR
# Half a GB of memory a process. Logs: OUTPUT/msrun_log/worker_<rank>.log
set -euo pipefail
MINDGLM_ENV_FILE=none
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
for word in "$@"; do
    if [ "$word" = --help ] || [ "$word" = -h ]; then exec "$PYTHON" -m mindglm.train.rehearsal --help; fi
done
OUTPUT=output/rehearsal
previous=""
for word in "$@"; do
    if [ "$previous" = --output ]; then OUTPUT="$word"; fi
    case "$word" in --output=*) OUTPUT="${word#*=}" ;; esac
    previous="$word"
done
COUNT="$("$PYTHON" -m mindglm.train.rehearsal --prepare "$@")" || exit $?
echo "== rehearsal: $COUNT processes"
exec "$PYTHON" "$ROOT/launch/supervise.py" --workers "$COUNT" --log-dir "$OUTPUT/msrun_log" --grace 10 -- \
    python -m mindglm.train.rehearsal "$@"
