"""`mindglm prepare`: raw pictures and captions -> a dataset folder of shards (see shards.py for the files).

With several sizes (buckets) a picture goes to the one that changes it least: readers.nearest_bucket.

Shard i holds what caption lines i * shard_size ... become, one shard for each bucket, so mending or adding a picture
remakes the shards of its lines only. A shard is reused when the bytes of its pictures, its captions, the transform and
the encoders' weights are all the same.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mindglm.checkpoint.released import component_config
from mindglm.data import readers, shards
from mindglm.data.drawing import fraction_of, remove_staging, write_json, write_jsonl
from mindglm.data.fingerprint import encoder_hashes
from mindglm.errors import UserError
from mindglm.models.ar_generator import config as ar_config
from mindglm.recipe import sizes as picture_sizes
from mindglm.recipe.sizes import Size

COMPILE_FROM = 500  # pictures of a size from which compiling the tower for it pays
TRANSFORM = "cover, lanczos, centre crop, alpha on white; 1"


def run(images, captions, model_dir, output, sizes: Sequence[Size], held_out: float = 0.05,
        pixels_only: bool = False, shard_size: int = 256) -> dict:
    """Prepare a dataset in `output`; prints a summary and returns what index.json says.

    sizes: (height, width) of the prepared pictures; several of them are buckets. held_out: share of the pictures whose
    caption line names no split. pixels_only: store uint8 pixels, needs no model. Raises UserError for input that cannot
    work, also when every picture is refused.
    """
    sizes = sorted(map(tuple, sizes), key=lambda size: (size[0] * size[1], size))  # whatever the order they came in
    _check_arguments(images, output, held_out, shard_size)
    if not pixels_only and not model_dir:
        raise UserError("model: none given; give the folder whose encoders to use, or --pixels-only")
    _check_sizes(sizes, None)
    candidates, refusals = readers.read_candidates(images, captions)
    hashes = {} if pixels_only else encoder_hashes(model_dir)
    if not pixels_only:
        _check_sizes(sizes, model_dir)
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    remove_staging(output, "shard-")
    job = _Job(output, None if pixels_only else Path(model_dir), sizes, held_out, hashes, len(candidates))
    made = []
    with tqdm(total=len(candidates), desc="preparing", unit="picture") as bar:
        for number, start in enumerate(range(0, len(candidates), shard_size)):
            made.extend(job.shards(number, candidates[start:start + shard_size], bar))
    refused = [refusal.to_json() for refusal in refusals] + [row for texts in made for row in texts["refused"]]
    index = _index(job, made, refused, shard_size)
    write_jsonl(output / "refused.jsonl", refused)
    if not index["counts"]["train"] + index["counts"]["held_out"]:
        reasons = _by_reason(index["counts"]["refused"])
        raise UserError(f"no picture could be used: {reasons}; see {output}/refused.jsonl")
    write_json(output / "index.json", index)
    _remove_surplus(output, {entry["name"] for entry in index["shards"]})
    print(_summary(index, output, job.reused))
    return index


def _check_arguments(images, output, held_out: float, shard_size: int) -> None:
    if not 0.0 <= held_out < 1.0:
        raise UserError(f"held-out {held_out}: expected a share of the pictures, 0 <= share < 1, such as 0.05")
    if shard_size < 1:
        raise UserError(f"shard-size {shard_size}: expected at least 1 sample a shard")
    if Path(output).exists() and not Path(output).is_dir():
        raise UserError(f"output: {output} is a file; give a folder to write the dataset to")
    if Path(output).resolve() == Path(images).resolve():
        raise UserError(f"output: {output} is the image folder itself; give another folder")


def _check_sizes(sizes: Sequence[Size], model_dir) -> None:
    """All faults at once. model_dir: whose vision tower has to know the sizes; None: not asked."""
    if not sizes:
        raise UserError("no size given; give --height and --width, or --bucket WIDTHxHEIGHT once or more")
    table = None
    if model_dir is not None:
        config = ar_config.from_hf(component_config(model_dir, "vision_language_encoder"))
        table = config.vision_config.table_side
    faults = [f"{picture_sizes.name(size)}: expected {expected}" for size in sizes
              if (expected := picture_sizes.fault(size, table))]
    faults += [f"{picture_sizes.name(size)}: given twice" for size, times in Counter(sizes).items() if times > 1]
    if faults:
        raise UserError(f"size (width x height) {'; '.join(faults)}")


class _Job:
    """What all shards of one run share; the encoders are loaded when the first shard needs them."""

    def __init__(self, output: Path, model_dir: Path | None, sizes: Sequence[Size], held_out: float, hashes: dict,
                 pictures: int):
        self.output, self.model_dir, self.sizes = output, model_dir, sizes
        self.held_out, self.hashes = held_out, hashes
        self.pictures, self.reused = pictures, 0
        self._encoders = {}

    def encoders(self, size: Size):
        """Those for pictures of this size; all share their weights."""
        if size not in self._encoders:
            from mindglm.data.encoders import Encoders  # imports MindSpore

            others = next(iter(self._encoders.values()), None)
            compiled = self.pictures >= COMPILE_FROM * len(self.sizes)
            self._encoders[size] = others.resized(*size) if others else Encoders(self.model_dir, *size,
                                                                                 compiled=compiled)
        return self._encoders[size]

    def shards(self, number: int, chunk: list[readers.Candidate], bar) -> list[dict]:
        """The shards of these caption lines as `shard` returns them."""
        if len(self.sizes) == 1:
            return [self.shard(shards.shard_name(number), 0, chunk, bar)]
        dealt: list[list[readers.Candidate]] = [[] for _ in self.sizes]
        for candidate in chunk:
            size = readers.picture_size(candidate.path)
            # What cannot be read is refused in the first bucket.
            dealt[readers.nearest_bucket(size, self.sizes) if size else 0].append(candidate)
        return [self.shard(shards.shard_name(number, size), bucket, candidates, bar)
                for bucket, (size, candidates) in enumerate(zip(self.sizes, dealt)) if candidates]

    def shard(self, name: str, bucket: int, chunk: list[readers.Candidate], bar) -> dict:
        """The texts of one shard, its name, bucket and key; it is written unless it is there already."""
        size = self.sizes[bucket]
        contents = [_read(candidate.path) for candidate in chunk]
        splits = [candidate.split or self._split(candidate.id) for candidate in chunk]
        key = shards.key_of({
            "format": shards.FORMAT, "transform": TRANSFORM, "size": list(size), "encoders": self.hashes,
            "samples": [[c.id, c.caption, split, hashlib.sha256(content).hexdigest() if content is not None else None]
                        for c, split, content in zip(chunk, splits, contents)],
        })
        texts = shards.finished_shard(self.output, name, key)
        if texts is not None:
            self.reused += 1
            bar.update(len(chunk))
            return {**texts, "name": name, "bucket": bucket}
        # From here on the folder is not what its index says: without an index the loader refuses it.
        (self.output / "index.json").unlink(missing_ok=True)
        texts, pictures = self._open_pictures(size, chunk, splits, contents)
        bar.update(len(texts["refused"]))
        arrays = self._arrays(size, pictures, texts, bar)
        shards.write_shard(self.output, name, key, arrays, texts)
        return {"key": key, **texts, "name": name, "bucket": bucket}

    def _split(self, sample_id: str) -> str:
        return "held_out" if fraction_of(0, "held-out picture", sample_id) < self.held_out else "train"

    def _open_pictures(self, size: Size, chunk, splits, contents) -> tuple[dict, list]:
        """Decode and fit: (texts of the shard, list of (pixels, crop))."""
        texts: dict = {"ids": [], "captions": [], "splits": [], "refused": [], "resized": 0, "notes": {}}
        notes, pictures = Counter(), []
        for candidate, split, content in zip(chunk, splits, contents):
            try:
                if content is None:
                    raise readers.RefusedImage("unreadable image", "the file cannot be opened")
                image, converted = readers.load_image(content)
                pixels, crop, resized = readers.fit(image, *size)
            except readers.RefusedImage as refusal:
                texts["refused"].append(readers.Refusal(candidate.id, refusal.reason, refusal.detail).to_json())
                continue
            pictures.append((pixels, crop))
            notes.update(converted)
            texts["ids"].append(candidate.id)
            texts["captions"].append(candidate.caption)
            texts["splits"].append(split)
            texts["resized"] += int(resized)
        texts["notes"] = dict(notes)
        return texts, pictures

    def _arrays(self, size: Size, pictures, texts: dict, bar) -> dict[str, np.ndarray]:
        """The arrays of a shard; encodes unless only pixels are wanted."""
        if not pictures:
            return {}
        if self.model_dir is None:
            bar.update(len(pictures))
            return {"pixels": np.stack([pixels for pixels, _ in pictures])}
        samples, encoders = [], self.encoders(size)
        for start in range(0, len(pictures), encoders.batch_size):
            part = slice(start, start + encoders.batch_size)
            batch = encoders.encode([pixels for pixels, _ in pictures[part]], texts["captions"][part])
            samples.extend(batch)
            bar.update(len(batch))
        for sample, (_, crop) in zip(samples, pictures):
            sample["target_size"] = np.asarray(size, np.int32)
            sample["crop"] = np.asarray(crop, np.int32)
        return {**shards.pack(samples), "empty_glyph": encoders.empty_glyph,
                "empty_prompt_ids": encoders.empty_prompt_ids}


def _read(path: Path) -> bytes | None:
    """The file's bytes; None when the system does not let us read it."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def _index(job: _Job, made: list[dict], refused: list[dict], shard_size: int) -> dict:
    splits: dict[str, list[int]] = {"train": [], "held_out": []}
    buckets = [{"height": height, "width": width, "train": 0, "held_out": 0, "resized": 0}
               for height, width in job.sizes]
    notes, ordinal = Counter(), 0
    for texts in made:
        notes.update(texts["notes"])
        bucket = buckets[texts["bucket"]]
        bucket["resized"] += texts["resized"]
        for split in texts["splits"]:
            bucket[split] += 1
            splits[split].append(ordinal)
            ordinal += 1
    return {
        "kind": shards.KIND, "format": shards.INDEX_FORMAT, "buckets": buckets,
        "pixels_only": job.model_dir is None, "encoder": job.hashes, "transform": TRANSFORM, "shard_size": shard_size,
        "shards": [{"name": texts["name"], "bucket": texts["bucket"], "samples": len(texts["ids"]), "key": texts["key"]}
                   for texts in made],
        "counts": {**{name: sum(bucket[name] for bucket in buckets) for name in ("train", "held_out", "resized")},
                   "notes": dict(notes), "refused": dict(Counter(row["reason"] for row in refused))},
        "splits": splits,
    }


def _remove_surplus(output: Path, names: set[str]) -> None:
    """Remove shards of an earlier run that this one does not have."""
    for path in output.glob("shard-*.*"):
        if path.suffix in (".json", ".safetensors") and path.stem not in names:
            path.unlink()


def _by_reason(refused: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(refused.items(), key=lambda item: -item[1]))


def _summary(index: dict, output: Path, reused: int) -> str:
    counts, buckets = index["counts"], index["buckets"]
    what = f"{counts['train'] + counts['held_out']} pictures"
    if len(buckets) == 1:
        what += f" of {buckets[0]['width']} x {buckets[0]['height']}"
    lines = [f"{what} in {output}: {counts['train']} train, {counts['held_out']} held out, {len(index['shards'])} "
             f"shards ({reused} reused)"]
    if len(buckets) > 1:
        lines += [f"  {bucket['width']} x {bucket['height']}: {bucket['train']} train, {bucket['held_out']} held out, "
                  f"{bucket['resized']} resized or cropped" for bucket in buckets]
    lines.append(f"  resized or cropped: {counts['resized']}")
    lines += [f"  {note}: {count}" for note, count in sorted(counts["notes"].items())]
    refused = sum(counts["refused"].values())
    where = f" ({_by_reason(counts['refused'])}); see {output}/refused.jsonl" if refused else ""
    lines.append(f"  refused: {refused}{where}")
    return "\n".join(lines)
