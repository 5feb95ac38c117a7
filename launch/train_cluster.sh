#!/usr/bin/env bash
# Trains by a recipe on many machines: starts train_node.sh on each over ssh, watches all, ends all when one fails.
#   bash launch/train_cluster.sh --hosts FILE [options] RECIPE [key=value ...]
#   bash launch/train_cluster.sh --hosts hosts.txt --dry-run recipes/glm_image/ar_9b_pretrain_256.yaml
# FILE: one machine a line, the first one is node 0:    NAME [slots=8] [addr=10.0.0.1]
#   NAME as ssh knows it (keys, no password); addr: how the others reach it, if not by NAME.
# Needs on every machine: this repository, the environment and the working directory under the same paths (a shared disk
# or equal copies). output_dir must be on a shared disk.
# Options (all: --help):
#   --dry-run            print every command that would be run, on which machine
#   --max-restarts N     after a fault end all nodes and start all again from the last checkpoint, N times at most
#   --master-port PORT   of the scheduler on node 0 (8118)        --nic NAME   on every node, for HCCL's first contact
#   --env FILE           variables to source on every node instead of launch/env_atlas800t_a2.sh
#   --log-dir DIR        logs: DIR/worker_<rank>.log on the node of that rank, default output/msrun_log
# Ctrl-C and SIGTERM make all workers save and leave; a second one kills them. Nodes end by themselves when ssh breaks.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec "$PYTHON" "$ROOT/launch/cluster.py" "$@"
