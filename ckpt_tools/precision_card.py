"""Precision card: does mindglm compute on this device what the public GLM-Image classes compute? Tensor by tensor.

REPO      a model folder in the released layout (model_index.json, vision_language_encoder/, transformer/, ...)
FIXTURES  inputs, intermediate tensors and outputs of the public torch classes on that model: one *.safetensors file
          a family (vision_vq, ar_t2i, dit_t2i, vae, pipeline, train_dit ...); every family found is run

Make both, a tiny random model and its fixtures, where torch, transformers and diffusers are installed (any machine):

    pip install -r tests/golden/requirements.txt
    python tests/golden/make_golden.py --out OUT --variant base   # or --list-variants, rand:7
    python -m ckpt_tools.precision_card OUT/repo OUT/fixtures --device Ascend --dtype bf16

The checkout holds such a pair ready: tests/golden/base/repo and tests/golden/base/fixtures.

How to read it: a line a tensor, in the order in which a picture is made, each computed from our own earlier ones. The
error is the largest absolute difference over the largest absolute reference value. After a first wrong tensor most
later ones are wrong as well, so look at the FIRST DEPARTURE named at the end: its layer, on this device, is the cause.
Tolerances: float32 1e-5 forward and 1e-4 for gradients, integers exact; those of float16 and bfloat16 are what the
dtype can hold on such a model. "not judged": a code that rounding decides in half precision.

Exit codes: 0 every tensor within its tolerance; 1 one is over, or a family failed to run; 2 bad input.
"""

import argparse
import json
import os
import pathlib
import sys

from mindglm.errors import UserError, exit_code

EXIT_DEPARTURE = 1


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m ckpt_tools.precision_card", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("repo", metavar="REPO", help="model folder in the released layout")
    made.add_argument("fixtures", metavar="FIXTURES", help="folder of fixture families")
    made.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32",
                      help="of weights and activations (default fp32)")
    made.add_argument("--device", choices=("CPU", "Ascend"), help="default: Ascend where there is one")
    made.add_argument("--json", metavar="FILE", help="also write the card to FILE")
    made.add_argument("--family", action="append", default=[], metavar="NAME",
                      help="only this family; may be given several times")
    return made


def set_device(asked: str | None, dtype: str) -> str:
    """Chooses the device before anything computes; returns its name. UserError when it is not there."""
    os.environ.setdefault("GLOG_v", "3")
    import mindspore as ms

    if asked is not None:
        try:
            ms.set_device(asked)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"--device {asked}: MindSpore does not find it here ({str(error).splitlines()[0]}); "
                            "use --device CPU, or run where the Ascend driver and CANN are installed") from error
    device = ms.get_current_device().device_target
    if device == "CPU" and dtype == "bf16":
        os.environ["MINDGLM_OPS"] = "cpu_bf16"  # the CPU has no bfloat16 kernels: see mindglm/ops/widened.py
    return device


def check_paths(repo: pathlib.Path, fixtures: pathlib.Path, json_file: pathlib.Path | None) -> None:
    """Everything that can be wrong with the arguments, before MindSpore is loaded."""
    if not repo.is_dir():
        raise UserError(f"model folder {repo}: no such folder; expected one in the released GLM-Image layout")
    if not (repo / "model_index.json").is_file():
        raise UserError(f"model folder {repo}: no model_index.json in it; expected a folder in the released GLM-Image "
                        "layout, for example OUT/repo of make_golden.py")
    if not fixtures.is_dir():
        raise UserError(f"fixtures {fixtures}: no such folder; `--help` says how to make fixtures")
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise UserError(f"--json {json_file}: its folder does not exist; make it first")


def run(args) -> bool:
    """Prints the card; whether every tensor is within its tolerance."""
    repo, fixtures = pathlib.Path(args.repo), pathlib.Path(args.fixtures)
    json_file = None if args.json is None else pathlib.Path(args.json)
    check_paths(repo, fixtures, json_file)
    device = set_device(args.device, args.dtype)

    from mindglm.checkpoint.disk import write_text
    from mindglm.evaluate.precision import card
    from mindglm.evaluate.precision.subject import Subject

    print(f"precision card: {repo} beside {fixtures}, {args.dtype} on {device}\n\n{card.HEADER}", flush=True)
    made = card.run(Subject(repo, args.dtype), fixtures, args.family, lambda row: print(card.line(row), flush=True))
    print("\n" + card.summary(made))
    if json_file is not None:
        facts = {"repo": str(repo), "fixtures": str(fixtures), "dtype": args.dtype, "device": device}
        write_text(json_file, json.dumps(card.as_json(made, **facts), indent=1, ensure_ascii=False) + "\n")
    return made.first_departure is None


def main(argv=None) -> int:
    args = parser().parse_args(argv)
    passed = []
    code = exit_code(lambda: passed.append(run(args)))
    return code or (0 if passed == [True] else EXIT_DEPARTURE)


if __name__ == "__main__":
    sys.exit(main())
