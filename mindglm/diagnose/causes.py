"""What can end a job, how its logs say it, and what to do next. Data: `mindglm.diagnose.triage` draws the conclusion.

A cause is a rank's own, or it only tells that the rank waited for another one. Wordings: MindSpore 2.9's messages as
seen on CPU and in its wheel's libraries; CANN's and HCCL's as in `ascend_codes` and the public pages named there.
"""

import re
from dataclasses import dataclass

from mindglm.diagnose import ascend_codes


@dataclass(frozen=True)
class Cause:
    """One kind of end."""

    title: str
    next: tuple[str, ...]
    """What to do, in order."""
    waits: bool = False
    """The rank that says this waited for another: look for that one."""


MEMORY = ("See what the recipe needs: mindglm plan RECIPE. Cheapest first: recompute_config.recompute=true, a smaller "
          "micro-batch with more runner_config.gradient_accumulation_steps, parallel_config.optimizer_shard=true, more "
          "parallel_config.pipeline_stage",
          "npu-smi info: does another process hold memory of this device?",
          "HCCL keeps 2 x HCCL_BUFFSIZE MB a group on every device")
LATE = ("Look at that rank's log and machine first (the others only waited for it)",
        "If it is slow and not dead: raise HCCL_EXEC_TIMEOUT (seconds; Ascend) or MS_NODE_TIMEOUT (CPU); writing "
        "checkpoints, validation and the first compilation are the usual long waits")

CAUSES: dict[str, Cause] = {
    "mistake": Cause("a mistake that mindglm itself names", (
        "Do what the message says; starting again without a change would end the same way",)),
    "exception": Cause("a Python exception", ("Read the traceback; its first error is the cause, its last frame the "
                                              "place",)),
    "diverged": Cause("the loss or the gradient was not finite for too many steps", (
        "mindglm replay OUTPUT_DIR/capsules/step_...: was it the data, the numerics, or a fault that does not come "
        "again?",
        "Lower lr_schedule.learning_rate or lengthen lr_schedule.warmup_steps; look at metrics.jsonl before the first "
        "skipped step",)),
    "device_memory": Cause("the device had no memory left", MEMORY),
    "host_memory": Cause("the machine had no memory left", (
        "free -g and dmesg | grep -i oom on that machine: what else runs there?",
        "Fewer workers on the machine, or a smaller runner_config.global_batch_size")),
    "disk_full": Cause("a disk is full", (
        "df -h on the path in the message; the last complete checkpoint is kept: make room and start again",
        "checkpoint.keep_checkpoint_max says how many are kept")),
    "not_writable": Cause("a file or folder may not be written or read", (
        "Check owner, mode and mount of the path in the message on that very machine",)),
    "missing_op": Cause("an operation does not exist on this device", (
        "On CPU use the operations of mindglm.ops (composed where MindSpore has no CPU kernel); "
        "context.device_target=auto takes Ascend where there is one",)),
    "no_import": Cause("a Python package or shared library is missing", (
        "mindglm doctor on that machine names what is installed and what is expected",
        "On Ascend: source CANN's set_env.sh before the start (launch/environment.sh does)")),
    "no_device": Cause("the device cannot be used", (
        "npu-smi info: is it there, healthy, and free? ASCEND_RT_VISIBLE_DEVICES must name as many as local workers",
        "mindglm doctor RECIPE")),
    "port_busy": Cause("a port is in use", (
        "ss -ltnp | grep PORT names who listens: an earlier job that was not ended, or another user's",
        "Choose another --master-port; for HCCL another HCCL_IF_BASE_PORT, and reserve its ports: "
        "sysctl -w net.ipv4.ip_local_reserved_ports=60000-60031")),
    "hccl_variable": Cause("an HCCL variable has a value that is not allowed", (
        "The message names the variable and its range; mindglm doctor checks all of them",)),
    "rank_table": Cause("the rank table does not fit", ("unset RANK_TABLE_FILE: msrun needs none",)),
    "different_calls": Cause("ranks made different calls of a collective", (
        "Are code, recipe and packages the same on all machines? mindglm doctor --hosts FILE compares them",)),
    "cann_versions": Cause("CANN differs between machines", ("mindglm doctor --hosts FILE; install one version",)),
    "link_fault": Cause("the network between devices failed", (
        "hccn_tool -i DEVICE -link -g, -net_health -g and -tls -g on both machines; all must agree on TLS",
        "Look for 'error cqe' in CANN's own logs (ASCEND_PROCESS_LOG_PATH)")),
    "device_fault": Cause("the device or its driver failed", (
        "npu-smi info on that machine; take the machine out of the hosts file and start again from the checkpoint",
        "Give CANN's logs (ASCEND_PROCESS_LOG_PATH) to the operator of the machine")),
    "kernel_fault": Cause("a kernel failed on the device", (
        "Start again with ASCEND_LAUNCH_BLOCKING=1: the Python line that is named then is the operation",
        "The same step on the same data again? Then it is the operation; another one? Then suspect the device")),
    "kernel_time_out": Cause("a kernel did not end on the device", (
        "Start again with ASCEND_LAUNCH_BLOCKING=1 to see which operation it is",
        "npu-smi info: is the device healthy?")),
    "crash": Cause("the process crashed outside Python", (
        "Run the same command once alone with PYTHONFAULTHANDLER=1: it prints the Python line",
        "Bus error: /dev/shm or the disk under a mapped file is full")),
    "killed": Cause("the process was killed from outside", (
        "dmesg -T > LOGDIR/dmesg.log on its machine, and triage again: it tells whether the kernel's out-of-memory "
        "killer did it, which is the usual one",
        "Else the job scheduler, an operator, or a container limit; start again: it goes on from the last checkpoint")),
    "ended_early": Cause("the process ended without an error of its own", (
        "It left while others still needed it: look at the end of its log, and for os._exit or sys.exit in its code",
        "dmesg | grep -i 'killed process' on its machine: a killed process says nothing either")),
    "vanished": Cause("the process is gone without a word: killed, left before the others, or its machine lost", (
        "dmesg | grep -i 'killed process' on its machine: the kernel's out-of-memory killer is the usual one",
        "Is the machine up? Then start again: it goes on from the last checkpoint; launch/train_node.sh tells how "
        "processes ended")),
    "stopped": Cause("the job was told to stop", (
        "Start the same command again: it goes on from the last checkpoint",)),
    "hangs": Cause("the rank is silent: it hangs or is far slower than the others", (
        "py-spy dump --pid PID on its machine shows where it is; its log ends before the others waited",
        "A slow disk, a data sample that never ends, a device that stopped; npu-smi info",
        "If it was only slow: raise HCCL_EXEC_TIMEOUT (Ascend) or MS_NODE_TIMEOUT (CPU)")),
    "collective_wait": Cause("a collective or a transfer waited for another rank", LATE, waits=True),
    "notify_wait": Cause("a collective waited for another rank until HCCL_EXEC_TIMEOUT (EI0002)", LATE, waits=True),
    "stream_wait": Cause("the device waited, usually for another rank inside a collective", LATE, waits=True),
    "socket_wait": Cause("the connection to another rank timed out (EI0006)", (
        "Is that rank alive, and did it come to the same call? Its first step may compile longer than "
        "HCCL_CONNECT_TIMEOUT (launch/env_atlas800t_a2.sh sets 1200 s)",
        "If all ranks say so at the same time: firewall, HCCL_SOCKET_IFNAME, hccn_tool -i DEVICE -tls -g; "
        "mindglm doctor --hosts FILE"), waits=True),
    "agents_wait": Cause("ranks did not report to the root of the group (EI0015)", (
        "Look at the logs of the ranks that are missing",
        "HCCL_SOCKET_IFNAME must name the interface that reaches node 0 on every machine: "
        "mindglm doctor --hosts FILE"), waits=True),
    "scheduler_gone": Cause("MindSpore ended the worker because the scheduler was gone", (), waits=True),
    "node_lost": Cause("the scheduler lost a worker", (), waits=True),
    "cluster_incomplete": Cause("not all workers found together", (
        "Are --worker_num and the number of started workers equal, and --master_addr and --master_port the same on all "
        "nodes?", "mindglm doctor --hosts FILE tries whether every machine reaches node 0's port"), waits=True),
    "no_scheduler": Cause("workers do not reach the scheduler", (
        "--master_addr must be an address of node 0 that the other machines reach (no 127.0.0.1 and no name that means "
        "it on several nodes); msrun starts the scheduler only where the address is the machine's own",
        "mindglm doctor --hosts FILE tries it; is a firewall between them?"), waits=True),
    "unknown": Cause("no error in these logs", (
        "Does the job still run? Then triage again when it has ended",
        "The console of launch/train_node.sh or msrun has the exit codes; CANN's own logs lie in "
        "ASCEND_PROCESS_LOG_PATH")),
}

PATTERNS: tuple[tuple[str, re.Pattern], ...] = tuple((key, re.compile(pattern)) for key, pattern in (
    # ---- a rank's own ----
    ("diverged", r"runner_wrapper\.max_skipped_steps is \d+"),
    ("device_memory", r"[Mm]emory not enough|[Mm]emory isn't enough and alloc failed|Allocate \w+ ?memory failed"
                      r"|is more than total mem size|Malloc device memory failed|NPU out of memory"),
    ("host_memory", r"^MemoryError\b|std::bad_alloc|Cannot allocate memory|\[Errno 12\]|Out of memory: Killed process"
                    r"|Allocate memory failed for size|^numpy.*ArrayMemoryError"),
    ("disk_full", r"No space left on device|Disk quota exceeded|\[Errno (28|122)\]"),
    ("not_writable", r"Read-only file system|Permission denied|\[Errno (1|13|30)\]"),
    ("missing_op", r"The kernel (?P<what>\w+) unregistered|only supports? (running on )?Ascend"
                   r"|Unsupported op \[(?P<op>\w+)\] on CPU|Invalid backend: CPU"),
    ("port_busy", r"Address already in use|Failed to call (bind|socket listen)|Failed to init the tcp server|port is "
                  r"being used by other process|\[Errno 98\]"),
    ("no_import", r"^(ModuleNotFoundError|ImportError)\b|cannot open shared object file"),
    ("no_device", r"Unsupported device target \w+|aclrtSetDevice failed|Ascend kernel runtime initialization failed"),
    ("device_fault", r"HBM.*ECC error|[Dd]evice .*lost heartbeat"),
    ("kernel_fault", r"exception of ai(vec|core) error|AICORE Kernel task happen error|ai(vec|core) exception"),
    ("kernel_time_out", r"aicore (execution )?time ?s? ?out|Vector core execution timed out"),
    ("link_fault", r"error cqe"),
    ("crash", r"Segmentation fault|^Fatal Python error|terminate called after throwing|^Aborted|Bus error|double free "
              r"or corruption|core dumped|\*\*\* stack smashing"),
    # ---- waiting for another ----
    ("scheduler_gone", r"Failed to connect to the meta server\. Maybe it has exited|Kill this process with SIGTERM"),
    ("node_lost", r"total number of timed out node|The node: (?P<rank>\d+) is timed out"),
    ("cluster_incomplete", r"some processes in the cluster are not successfully spawned"),
    ("no_scheduler", r"the scheduler at (?P<what>\S+) did not answer|Failed to connect to the meta server node url"),
    ("agents_wait", r"topo exchange server get socket timeout|Failed to connect agent\[(?P<rank>[\d,]+)\]"),
    ("socket_wait", r"Getting socket times out|wait socket establish timeout"),
    ("notify_wait", r"wait execution of the Notify register times out"),
    ("stream_wait", r"event wait timeout occurred|fftsplus timeout|Stream synchronize timeout"
                    r"|reason=\[the model stream execute failed\]"),
    # What transport.named_failures says: with whom.
    ("collective_wait", r"TransportError: rank \d+: .* with ranks? \[?(?P<rank>\d+)\]? failed after"),
    ("collective_wait", r"TransportError|CollectiveWait .*failed|\b(Send|Recv|AllReduce|AllGather|Broadcast|Barrier"
                        r"|Gather|Scatter|Reduce)\w* failed\b|Failed to (send|receive) .*collective"),
))

HINT = re.compile(r"rror|ailed|[Tt]ime ?[sd]? ?out|emory|space|quota|ermission|Read-only|unregistered|upport"
                  r"|Address|port is|Segm|Fatal|terminate|Abort|dumped|smashing|corruption|heartbeat|xception|happen"
                  r"|answer|Kill|lloc|skipped_steps|E[IJLE]\d{4}|result ?=|retCode|spawned")
"""What every line has that `of_line` can tell anything of: most lines have none, and are not looked at further."""

CODE = re.compile(r"(?:error code(?: is)?:? ?|error_code ?: ?|result ?= ?|retCode[:= ] ?)"
                  r"(?P<runtime>[125]0[57]\d{3}|207\d{3})\b|(?P<name>E[IJLE]\d{4})\b")
REMOTE = re.compile(r"from remote rank:? ?\[(\d+)\]")


def of_line(line: str) -> tuple[str, str, str] | None:
    """(key in CAUSES, what it says in a word or "", ranks named or "") of a line of a log, or None."""
    if HINT.search(line) is None:
        return None
    found = None
    for key, pattern in PATTERNS:
        match = pattern.search(line)
        if match:
            groups = match.groupdict()
            found = key, groups.get("what") or groups.get("op") or "", groups.get("rank") or ""
            break
    # A code says more than a text that only tells of waiting.
    if found is None or CAUSES[found[0]].waits:
        found = _of_code(line) or found
    if found and found[0] == "notify_wait" and not found[2]:
        remote = REMOTE.search(line)
        found = (found[0], found[1], remote[1] if remote else "")
    return found


def _of_code(line: str) -> tuple[str, str, str] | None:
    match = CODE.search(line)
    if match is None:
        return None
    table, code = ((ascend_codes.HCCL, match["name"]) if match["name"]
                   else (ascend_codes.RUNTIME, int(match["runtime"])))
    if code not in table:
        return None
    key, meaning = table[code]
    return key, f"{code}: {meaning}", ""
