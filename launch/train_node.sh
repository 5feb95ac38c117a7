#!/usr/bin/env bash
# Trains by a recipe on this machine, with as many workers as the recipe's parallel_config needs.
#   bash launch/train_node.sh [options] RECIPE [key=value ...]
#   bash launch/train_node.sh --max-restarts 3 recipes/nano/dit.yaml parallel_config.data_parallel=2
# Options (all: --help):
#   --log-dir DIR        logs: DIR/worker_<rank>.log, default output/msrun_log
#   --tail RANKS         workers whose logs also go to the console, default 0
#   --max-restarts N     after a fault start again from the last checkpoint, N times at most
#   --grace SECONDS      how long workers may take to save after Ctrl-C or SIGTERM (300); a second one kills them
#   --dry-run            print the command that would be run
# As one node of several, started by hand or by a scheduler such as Slurm (launch/train_cluster.sh does it by ssh):
#   bash launch/train_node.sh --nodes 2 --node-rank R --master-addr NODE0 --master-port 8118 RECIPE
#   --nic NAME           network interface of HCCL's first contact; default: the one that reaches NODE0
# Environment: launch/environment.sh (MINDGLM_VENV, MINDGLM_ENV_FILE). Exit code: 0 done, 2 a mistake, 143 stopped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec "$PYTHON" "$ROOT/launch/supervise.py" --train "$@"
