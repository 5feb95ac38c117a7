"""`mindglm prepare`: raw pictures and captions -> a dataset folder of shards (see shards.py for the files).

Shard i holds what caption lines i * shard_size ... become, so mending or adding a picture remakes one shard only. A
shard is reused when the bytes of its pictures, its captions, the transform and the encoders' weights are all the same.
"""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mindglm.data import readers, shards
from mindglm.data.drawing import fraction_of, remove_staging, write_json, write_jsonl
from mindglm.data.fingerprint import encoder_hashes
from mindglm.errors import UserError

CODE_PIXELS = 32  # one large code a 32 x 32 patch of the target
COMPILE_FROM = 500  # pictures from which compiling the tower pays
TRANSFORM = "cover, lanczos, centre crop, alpha on white; 1"


def run(images, captions, model_dir, output, height: int, width: int, held_out: float = 0.05,
        pixels_only: bool = False, shard_size: int = 256) -> dict:
    """Prepare a dataset in `output`; prints a summary and returns what index.json says.

    held_out: share of the pictures whose caption line names no split. pixels_only: store uint8 pixels, needs no model.
    Raises UserError for input that cannot work, also when every picture is refused.
    """
    _check_arguments(images, output, height, width, held_out, shard_size)
    if not pixels_only and not model_dir:
        raise UserError("model: none given; give the folder whose encoders to use, or --pixels-only")
    candidates, refusals = readers.read_candidates(images, captions)
    hashes = {} if pixels_only else encoder_hashes(model_dir)
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    remove_staging(output, "shard-")
    job = _Job(output, None if pixels_only else Path(model_dir), height, width, held_out, hashes,
               len(candidates))
    chunks = [candidates[i:i + shard_size] for i in range(0, len(candidates), shard_size)]
    made = []
    with tqdm(total=len(candidates), desc="preparing", unit="picture") as bar:
        for number, chunk in enumerate(chunks):
            made.append(job.shard(number, chunk, bar))
    refused = [refusal.to_json() for refusal in refusals] + [row for texts in made for row in texts["refused"]]
    index = _index(job, made, refused, shard_size)
    write_jsonl(output / "refused.jsonl", refused)
    if not index["counts"]["train"] + index["counts"]["held_out"]:
        reasons = _by_reason(index["counts"]["refused"])
        raise UserError(f"no picture could be used: {reasons}; see {output}/refused.jsonl")
    write_json(output / "index.json", index)
    _remove_surplus(output, len(chunks))
    print(_summary(index, output, job.reused))
    return index


def _check_arguments(images, output, height: int, width: int, held_out: float, shard_size: int) -> None:
    for name, value in (("height", height), ("width", width)):
        if value < CODE_PIXELS or value % CODE_PIXELS:
            nearest = max(CODE_PIXELS, round(value / CODE_PIXELS) * CODE_PIXELS)
            raise UserError(f"{name} {value}: one code stands for {CODE_PIXELS} x {CODE_PIXELS} pixels, so both sides "
                            f"must be positive multiples of {CODE_PIXELS}; try {nearest}")
    if max(height, width) > readers.MAX_ASPECT * min(height, width):
        raise UserError(f"height {height}, width {width}: one side may be at most {readers.MAX_ASPECT:g} times the "
                        "other; choose a squarer size")
    if not 0.0 <= held_out < 1.0:
        raise UserError(f"held-out {held_out}: expected a share of the pictures, 0 <= share < 1, such as 0.05")
    if shard_size < 1:
        raise UserError(f"shard-size {shard_size}: expected at least 1 sample a shard")
    if Path(output).exists() and not Path(output).is_dir():
        raise UserError(f"output: {output} is a file; give a folder to write the dataset to")
    if Path(output).resolve() == Path(images).resolve():
        raise UserError(f"output: {output} is the image folder itself; give another folder")


class _Job:
    """What all shards of one run share; the encoders are loaded when the first shard needs them."""

    def __init__(self, output: Path, model_dir: Path | None, height: int, width: int, held_out: float, hashes: dict,
                 pictures: int):
        self.output, self.model_dir = output, model_dir
        self.height, self.width, self.held_out, self.hashes = height, width, held_out, hashes
        self.pictures, self.reused = pictures, 0
        self._encoders = None

    @property
    def encoders(self):
        if self._encoders is None:
            from mindglm.data.encoders import Encoders  # imports MindSpore

            self._encoders = Encoders(self.model_dir, self.height, self.width, compiled=self.pictures >= COMPILE_FROM)
        return self._encoders

    def shard(self, number: int, chunk: list[readers.Candidate], bar) -> dict:
        """The texts of one shard, which is written unless it is there already."""
        contents = [_read(candidate.path) for candidate in chunk]
        splits = [candidate.split or self._split(candidate.id) for candidate in chunk]
        key = shards.key_of({
            "format": shards.FORMAT, "transform": TRANSFORM, "size": [self.height, self.width], "encoders": self.hashes,
            "samples": [[c.id, c.caption, split, hashlib.sha256(content).hexdigest() if content is not None else None]
                        for c, split, content in zip(chunk, splits, contents)],
        })
        texts = shards.finished_shard(self.output, number, key)
        if texts is not None:
            self.reused += 1
            bar.update(len(chunk))
            return texts
        # From here on the folder is not what its index says: without an index the loader refuses it.
        (self.output / "index.json").unlink(missing_ok=True)
        texts, pictures = self._open_pictures(chunk, splits, contents)
        bar.update(len(texts["refused"]))
        arrays = self._arrays(pictures, texts, bar)
        shards.write_shard(self.output, number, key, arrays, texts)
        return {"key": key, **texts}

    def _split(self, sample_id: str) -> str:
        return "held_out" if fraction_of(0, "held-out picture", sample_id) < self.held_out else "train"

    def _open_pictures(self, chunk, splits, contents) -> tuple[dict, list]:
        """Decode and fit: (texts of the shard, list of (pixels, crop))."""
        texts: dict = {"ids": [], "captions": [], "splits": [], "refused": [], "resized": 0, "notes": {}}
        notes, pictures = Counter(), []
        for candidate, split, content in zip(chunk, splits, contents):
            try:
                if content is None:
                    raise readers.RefusedImage("unreadable image", "the file cannot be opened")
                image, converted = readers.load_image(content)
                pixels, crop, resized = readers.fit(image, self.height, self.width)
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

    def _arrays(self, pictures, texts: dict, bar) -> dict[str, np.ndarray]:
        """The arrays of a shard; encodes unless only pixels are wanted."""
        if not pictures:
            return {}
        if self.model_dir is None:
            bar.update(len(pictures))
            return {"pixels": np.stack([pixels for pixels, _ in pictures])}
        samples, encoders = [], self.encoders
        for start in range(0, len(pictures), encoders.batch_size):
            part = slice(start, start + encoders.batch_size)
            batch = encoders.encode([pixels for pixels, _ in pictures[part]], texts["captions"][part])
            samples.extend(batch)
            bar.update(len(batch))
        for sample, (_, crop) in zip(samples, pictures):
            sample["target_size"] = np.asarray([self.height, self.width], np.int32)
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
    notes, ordinal = Counter(), 0
    for texts in made:
        notes.update(texts["notes"])
        for split in texts["splits"]:
            splits[split].append(ordinal)
            ordinal += 1
    return {
        "kind": shards.KIND, "format": shards.FORMAT, "height": job.height, "width": job.width,
        "pixels_only": job.model_dir is None, "encoder": job.hashes, "transform": TRANSFORM, "shard_size": shard_size,
        "shards": [{"name": shards.shard_name(i), "samples": len(texts["ids"]), "key": texts["key"]}
                   for i, texts in enumerate(made)],
        "counts": {"train": len(splits["train"]), "held_out": len(splits["held_out"]),
                   "resized": sum(texts["resized"] for texts in made), "notes": dict(notes),
                   "refused": dict(Counter(row["reason"] for row in refused))},
        "splits": splits,
    }


def _remove_surplus(output: Path, count: int) -> None:
    """Remove shards of an earlier, larger run: this run's numbers go up to count - 1."""
    for path in output.glob("shard-*.*"):
        number = path.stem.removeprefix("shard-")
        if number.isdigit() and int(number) >= count and path.suffix in (".json", ".safetensors"):
            path.unlink()


def _by_reason(refused: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(refused.items(), key=lambda item: -item[1]))


def _summary(index: dict, output: Path, reused: int) -> str:
    counts = index["counts"]
    kept = counts["train"] + counts["held_out"]
    lines = [f"{kept} pictures of {index['width']} x {index['height']} in {output}: {counts['train']} train, "
             f"{counts['held_out']} held out, {len(index['shards'])} shards ({reused} reused)",
             f"  resized or cropped: {counts['resized']}"]
    lines += [f"  {note}: {count}" for note, count in sorted(counts["notes"].items())]
    refused = sum(counts["refused"].values())
    where = f" ({_by_reason(counts['refused'])}); see {output}/refused.jsonl" if refused else ""
    lines.append(f"  refused: {refused}{where}")
    return "\n".join(lines)
