"""Prints what is in a checkpoint: a tree of tensors with shape, dtype, size and checksum.

    python -m ckpt_tools.inspect GLM-Image --fold
    python -m ckpt_tools.inspect output/glm_image/dit_7b_sft
    python -m ckpt_tools.inspect recipes/glm_image/ar_9b_pretrain_256.yaml --fold

PATH: model folder, component, training run or checkpoint, safetensors file; or what describes a model without weights:
a recipe, a config.json. Checksums (crc32) are those that the folder remembers; others are computed, which reads it all.
"""

import argparse
import json
import sys

from ckpt_tools import command
from mindglm.checkpoint import seal, tree
from mindglm.checkpoint.places import Entry, Place, open_place


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 done; 2 bad input."""
    parser = argparse.ArgumentParser(prog="python -m ckpt_tools.inspect", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("--step", type=int, help="which checkpoint of a run; left out: the newest")
    parser.add_argument("--fold", action="store_true", help="equal layers as one, without checksums")
    parser.add_argument("--no-checksums", action="store_true", help="headers only: nothing of the weights is read")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return command.run(parser, _inspect, arguments)


def _inspect(args: argparse.Namespace) -> None:
    place = open_place(args.path, args.step)
    checksums = {} if args.fold or args.no_checksums else _checksums(place)
    if args.json:
        print(json.dumps(_json(place, checksums), indent=1))
        return
    print(f"{place.path}: {place.kind}")
    for label, entries in place.groups.items():
        print(_total(label, entries.values()))
        leaves = {name: _describe(entry, checksums.get((label, name))) for name, entry in entries.items()}
        print("\n".join(tree.lines(leaves, args.fold)))
    if len(place.groups) > 1:
        print(_total("all", [entry for entries in place.groups.values() for entry in entries.values()]))
    for path in place.others:
        print(f"{path}  {command.size((place.path / path).stat().st_size)}")


def _checksums(place: Place) -> dict[tuple[str, str], int]:
    """{(group, tensor): crc32}, computed where it is not remembered."""
    known = {(label, name): entry.crc32 for label, entries in place.groups.items() for name, entry in entries.items()}
    unread = [(key, place.groups[key[0]][key[1]]) for key, crc in known.items() if crc is None]
    unread = [(key, entry) for key, entry in unread if entry.file is not None]
    if unread:
        with command.progress(sum(entry.nbytes for _, entry in unread), "checksums") as on_bytes:
            known.update({key: seal.tensor_crc(entry.file, key[1], on_bytes) for key, entry in unread})
    return {key: crc for key, crc in known.items() if crc is not None}


def _describe(entry: Entry, crc: int | None) -> str:
    text = f"{entry.code:<4} {command.size(entry.nbytes):>9}  {list(entry.shape)}"
    return text if crc is None else f"{text}  crc32 {crc:08x}"


def _total(label: str, entries) -> str:
    entries = list(entries)
    return (f"{label}: {len(entries)} tensors, {sum(entry.size for entry in entries):,} values, "
            f"{command.size(sum(entry.nbytes for entry in entries))}")


def _json(place: Place, checksums: dict) -> dict:
    groups = {label: {name: {"dtype": entry.code, "shape": list(entry.shape), "bytes": entry.nbytes,
                             **({"crc32": checksums[label, name]} if (label, name) in checksums else {})}
                      for name, entry in entries.items()} for label, entries in place.groups.items()}
    return {"path": str(place.path), "kind": place.kind, "groups": groups, "others": place.others}


if __name__ == "__main__":
    sys.exit(main())
