"""Prepared samples, read from memory-mapped shards when they are asked for."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mindglm.checkpoint.tensors import TensorFile
from mindglm.data import shards
from mindglm.data.fingerprint import differences, encoder_hashes
from mindglm.errors import UserError
from mindglm.recipe import sizes as picture_sizes
from mindglm.recipe.sizes import Size

OPEN_FILES = 256
"""Shards kept open; each takes a file descriptor, of which a process has 1024 by default."""

SHARED = ("empty_glyph", "empty_prompt_ids")
"""Arrays that are the same for every sample of a shard."""


class ShardDataset:
    """One split of a dataset folder: `len()` and `[i]` -> dict.

    `id` str, `caption` str, `index` int (i itself), and either `pixels` uint8 (H, W, 3) or
    prompt_ids int32 (S,), preview_codes int32 (ph, pw), large_codes int32 (h32, w32), latents float32 (Z, h8, w8),
    glyph float32 (T, D), target_size int32 (2,) = (H, W), crop int32 (2,) = (top, left), and those of the empty
    prompt: empty_glyph float32 (1, D), empty_prompt_ids int32 (S0,).

    folder: what `mindglm prepare --output` wrote. split: "train" | "held_out". model_dir: when given, the dataset must
    have been made with this model folder's encoders. only: (height, width) of the pictures wanted, where not all
    are. Raises UserError for a missing, unfinished, damaged or foreign dataset, for an empty split, and for sizes that
    the dataset does not hold.
    """

    def __init__(self, folder, split: str = "train", model_dir=None, only: Sequence[Size] = ()):
        self.folder, self.split = Path(folder), split
        self.index = shards.read_index(self.folder)
        assert split in self.index["splits"], split
        self._texts = [self._read_texts(entry) for entry in self.index["shards"]]
        self._starts = np.cumsum([0] + [entry["samples"] for entry in self.index["shards"]])
        self._files: OrderedDict[int, TensorFile] = OrderedDict()
        ordinals = np.asarray(self.index["splits"][split], np.int64)
        buckets = np.asarray([entry["bucket"] for entry in self.index["shards"]])[self._shard_of(ordinals)]
        wanted = self._wanted(only)
        self._ordinals = ordinals[np.isin(buckets, wanted)]
        buckets = buckets[np.isin(buckets, wanted)]
        if not len(self._ordinals):
            raise UserError(f"dataset {self.folder}: no sample in the split {split!r}; prepare it with a --held-out "
                            "share or with captions that name this split")
        held = [bucket for bucket in wanted if (buckets == bucket).any()]
        self.sizes: tuple[Size, ...] = tuple(self._sizes()[bucket] for bucket in held)
        """(height, width) of each bucket that has samples here."""
        self.members: tuple[np.ndarray, ...] = tuple(np.flatnonzero(buckets == bucket) for bucket in held)
        """The sample numbers of each of these buckets, int64, rising."""
        if model_dir is not None:
            self.check_encoder(model_dir)

    def __len__(self) -> int:
        return len(self._ordinals)

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        number, row = self._place(i)
        file, texts = self._file(number), self._texts[number]
        sample = {"id": texts["ids"][row], "caption": texts["captions"][row], "index": int(i)}
        for name in file.names:
            if name in SHARED:
                sample[name] = np.array(file.raw(name))
            elif not name.endswith("_offsets"):
                sample[name] = shards.row_of(file, name, row)
        return sample

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    @property
    def pixels_only(self) -> bool:
        return self.index["pixels_only"]

    def captions(self) -> list[str]:
        """The captions of the split, without touching an array."""
        return [self._texts[number]["captions"][row] for number, row in map(self._place, range(len(self)))]

    def check_encoder(self, model_dir) -> None:
        """Raises UserError unless the dataset was made with the encoders of this model folder."""
        if self.pixels_only:
            raise UserError(f"dataset {self.folder}: it holds pixels only; prepare it without --pixels-only for this "
                            "recipe")
        changed = differences(self.index["encoder"], encoder_hashes(model_dir))
        if changed:
            raise UserError(f"dataset {self.folder}: it was made with another {', '.join(changed)} than that of "
                            f"{model_dir}; run `mindglm prepare --model {model_dir}` again, or give the model it was "
                            "made with")

    def describe(self, counts: Sequence[int] | None = None) -> str:
        """For people: `512x512 (300), 384x640 (41)`; counts: of each bucket, its members unless given."""
        counts = [len(ids) for ids in self.members] if counts is None else counts
        return ", ".join(f"{picture_sizes.name(size)} ({count})" for size, count in zip(self.sizes, counts))

    def _sizes(self) -> list[Size]:
        return [(bucket["height"], bucket["width"]) for bucket in self.index["buckets"]]

    def _wanted(self, only: Sequence[Size]) -> list[int]:
        """Numbers of the index's buckets to read, rising."""
        held = self._sizes()
        missing = [picture_sizes.name(size) for size in only if tuple(size) not in held]
        if missing:
            raise UserError(f"train_dataset.buckets: {', '.join(missing)} is not in the dataset {self.folder}, which "
                            f"holds {', '.join(map(picture_sizes.name, held))} (width x height); prepare it with "
                            f"--bucket {missing[0]}, or leave that size out")
        return [bucket for bucket, size in enumerate(held) if not only or size in [tuple(size) for size in only]]

    def _shard_of(self, ordinals) -> np.ndarray:
        """Shard numbers of samples, by their number in the whole dataset."""
        return np.searchsorted(self._starts, ordinals, side="right") - 1

    def _place(self, i: int) -> tuple[int, int]:
        """(shard number, row) of sample i."""
        ordinal = self._ordinals[i]
        number = int(self._shard_of(ordinal))
        return number, int(ordinal - self._starts[number])

    def _file(self, number: int) -> TensorFile:
        if number not in self._files:
            entry = self.index["shards"][number]
            file = TensorFile(self.folder / f"{entry['name']}.safetensors")
            self._check_key(file.metadata.get("key"), entry)
            self._files[number] = file
            if len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)
        self._files.move_to_end(number)
        return self._files[number]

    def _read_texts(self, entry: dict) -> dict:
        texts = shards.finished_shard(self.folder, entry["name"], entry["key"])
        self._check_key(texts and texts["key"], entry)
        return texts

    def _check_key(self, key, entry: dict) -> None:
        if key != entry["key"]:
            raise UserError(f"dataset {self.folder}: {entry['name']} is missing, damaged or of another preparation; "
                            "run the same `mindglm prepare` command again")
