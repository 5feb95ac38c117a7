# Variables for Atlas 800T A2 (8 x Ascend 910B 64 GB, Kunpeng 920), sourced by launch/environment.sh on hosts that have
# Ascend devices. To change one, set it before the launch, or copy this file, edit it, and give the copy as
# MINDGLM_ENV_FILE (train_cluster.sh: --env FILE). What is set already is kept. From the public documents of CANN 8.5
# and 9.0 and MindSpore 2.9; nothing here was tried on a device by us.

# ---- CANN itself: libraries, compiler, operators ----
for _file in "${ASCEND_HOME_PATH:-/nowhere}/set_env.sh" /usr/local/Ascend/cann/set_env.sh \
    /usr/local/Ascend/ascend-toolkit/set_env.sh; do
    if [ -f "$_file" ]; then
        # It reads variables that may be unset.
        case $- in *u*) set +u; source "$_file"; set -u ;; *) source "$_file" ;; esac
        break
    fi
done
unset _file

_default() { # NAME VALUE: export unless it is set
    if [ -z "${!1+set}" ]; then export "$1=$2"; fi
}

# ---- HCCL: how ranks find each other ----
# Seconds that ranks wait for each other when a group is made (120 to 7200, default 120). The first step compiles
# operators, at different speed on different hosts: too little ends in "EI0006 Getting socket times out". The same on
# all nodes.
_default HCCL_CONNECT_TIMEOUT 1200
# Seconds that a collective waits for a rank that is late (default 1836, 0: for ever). Rank 0 writes checkpoints and
# evaluates meanwhile.
_default HCCL_EXEC_TIMEOUT 3600
# First of 16 (newer CANN: 32) host ports that HCCL uses. Keep the system from giving them away (once, as root):
#   sysctl -w net.ipv4.ip_local_reserved_ports=60000-60031
_default HCCL_IF_BASE_PORT 60000
# Host interface of the first contact. Left unset here: the launcher takes the one that reaches node 0 (--nic NAME
# chooses another; it sets HCCL_SOCKET_IFNAME="=NAME", where "=" means this very name; "eth" would be a prefix, and
# "^docker" excludes). Without any, HCCL takes the first by name that is neither docker nor lo, which may differ
# between nodes.
#   export HCCL_SOCKET_IFNAME="=enp189s0f0"
#   export HCCL_IF_IP=10.0.0.1      stronger than the name; differs from node to node, so not in a shared file

# ---- HCCL: memory and speed ----
# MB a buffer; every group keeps two on the device (all ranks, a pipeline column, a data-parallel group: three groups).
# A buffer should hold the largest message: micro-batch x tokens x width x 2 bytes (bf16); 4096 x 4096 x 2 = 32 MB.
_default HCCL_BUFFSIZE 200
# Same sums in the same order on every run: slower; for hunting differences. MindSpore's own switch goes with it.
#   export HCCL_DETERMINISTIC=true LCCL_DETERMINISTIC=1 CUSTOM_MATMUL_SHUFFLE=off

# ---- MindSpore ----
# A rank that is silent for so many seconds is given up; also the longest wait of a collective on CPU. Set by mindglm
# itself (workers 600, scheduler 15): a worker's death is seen by the launcher at once, not by this.
#   export MS_NODE_TIMEOUT=600
# Less fragmentation of device memory with batches of different lengths.
_default MS_ALLOC_CONF "enable_vmm:True"

# ---- logs ----
_default GLOG_v 3                  # MindSpore: 0 debug, 1 info, 2 warning, 3 error
_default ASCEND_GLOBAL_LOG_LEVEL 3 # CANN: the same scale
_default ASCEND_PROCESS_LOG_PATH "$PWD/output/plog"
# When hunting a fault: errors at the operator that caused them, at a great loss of speed.
#   export ASCEND_LAUNCH_BLOCKING=1

unset -f _default
