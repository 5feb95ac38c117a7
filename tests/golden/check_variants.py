"""Makes fixtures of many structures with the public torch classes and runs the precision card on each.

    python tests/golden/check_variants.py OUT --torch-python /tmp/golden/bin/python

run by the Python that has mindglm; --torch-python is one with tests/golden/requirements.txt (see README.md beside this
file). Without it nothing is made: the structures already in OUT are checked. Takes about a minute a structure on two
free cores; what was made is kept. --dtype and --device go to the card. Exit 1 when a card has a departure.
"""

import argparse
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
MAKER = ROOT / "tests" / "golden" / "make_golden.py"
VARIANTS = ("base", "deep", "flat", "ratio", *(f"rand:{n}" for n in range(1, 7)))


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--torch-python", help="interpreter that makes the fixtures")
    parser.add_argument("--variants", nargs="+", default=VARIANTS, metavar="NAME",
                        help=f"default: {' '.join(VARIANTS)}")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--device", default="CPU")
    args = parser.parse_args(argv)
    for variant in args.variants if args.torch_python else ():
        make(args.torch_python, args.out, variant)
    folders = sorted(path.parent for path in args.out.glob("*/manifest.json"))
    if not folders:
        parser.error(f"no structures in {args.out}; give --torch-python to make them")
    departed = [folder.name for folder in folders if not passes(folder, args.dtype, args.device)]
    print(f"{len(folders)} structures, departures in: {', '.join(departed) or 'none'}")
    return 1 if departed else 0


def make(python: str, out: pathlib.Path, variant: str) -> None:
    """Writes out/<variant>; the manifest comes last, so a folder with one is whole."""
    folder = out / variant.replace(":", "")
    if not (folder / "manifest.json").exists():
        print(f"making {variant}", flush=True)
        command = [python, str(MAKER), "--out", str(folder), "--seed", "0", "--variant", variant]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def passes(folder: pathlib.Path, dtype: str, device: str) -> bool:
    """Runs the card, keeps it as <folder>/card-<dtype>.txt and prints its last line."""
    command = [sys.executable, "-m", "ckpt_tools.precision_card", folder / "repo", folder / "fixtures",
               "--dtype", dtype, "--device", device]
    done = subprocess.run([str(c) for c in command], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    (folder / f"card-{dtype}.txt").write_text(done.stdout)
    lines = done.stdout.strip().splitlines() or ["(nothing printed)"]
    print(f"{folder.name}: {next((x for x in lines if x.startswith('FIRST DEPARTURE')), lines[-1])}", flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
