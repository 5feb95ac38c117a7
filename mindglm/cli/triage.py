"""Find the first failing rank in the logs of a job.

    mindglm triage output/msrun_log

Reads scheduler.log and worker_<rank>.log of msrun or of launch/train_node.sh, on one node or gathered from many, and
says which rank failed first, with what error of its own, why, and what to do next.
"""

import argparse
import dataclasses
import json
import pathlib

from mindglm.diagnose import causes, triage

SHOWN = 8  # other ranks that are named


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("logs", metavar="LOGDIR", help="the --log_dir of the job, for instance output/msrun_log")
    parser.add_argument("--json", action="store_true", help="print the verdict as JSON")


def run(args: argparse.Namespace) -> None:
    verdict = triage.of_folder(pathlib.Path(args.logs))
    if args.json:
        print(json.dumps(dataclasses.asdict(verdict), indent=2))
        return
    print(f"{verdict.who} {verdict.summary}")
    print(f"cause: {causes.CAUSES[verdict.cause].title} [{verdict.cause}]")
    for evidence in verdict.evidence:
        print(f"  {evidence.path}:{evidence.line}: {evidence.text[:300]}")
    for number, step in enumerate(verdict.next, 1):
        print(f"{'next:' if number == 1 else '     '} {number}. {step}")
    for rank in sorted(verdict.others)[:SHOWN]:
        print(f"rank {rank}: {verdict.others[rank][:300]}")
    if len(verdict.others) > SHOWN:
        print(f"{len(verdict.others) - SHOWN} more ranks: --json shows them")
