"""A folder of reference fixtures, as make_golden.py writes it: a family is a safetensors file, often with a json."""

import json
import pathlib

import numpy as np

from mindglm.checkpoint.tensors import TensorFile
from mindglm.errors import UserError

HOW_TO_MAKE = "python tests/golden/make_golden.py --out OUT --variant base (then OUT/repo and OUT/fixtures)"


class Fixture:
    """Arrays and side-car values of one family. It remembers what was read, so that nothing is left out unseen."""

    def __init__(self, folder, family: str):
        self.family = family
        self.path = pathlib.Path(folder) / f"{family}.safetensors"
        self._file = TensorFile(self.path)
        side_car = self.path.with_suffix(".json")
        try:
            self._values = json.loads(side_car.read_text(encoding="utf-8")) if side_car.is_file() else {}
        except ValueError as error:
            raise UserError(f"{side_car}: not a json file ({error}); make the fixtures again") from error
        self.read: set[str] = set()

    @property
    def names(self) -> list[str]:
        """Tensors, then side-car values."""
        return [*self._file.names, *self._values]

    def __contains__(self, name: str) -> bool:
        return name in self._file or name in self._values

    def __getitem__(self, name: str):
        """An array (bool, int64, float32, uint8) or a side-car value. UserError when the family has no such name."""
        if name not in self:
            raise UserError(f"{self.path}: no '{name}' in it; these fixtures were made by another make_golden.py. "
                            f"Make them with this checkout's: {HOW_TO_MAKE}")
        self.read.add(name)
        return np.array(self._file.raw(name)) if name in self._file else self._values[name]

    def unread(self) -> list[str]:
        """Names that were neither an input nor compared."""
        return [name for name in self.names if name not in self.read]


def found_families(folder) -> list[str]:
    """Families that the folder holds files of. UserError when it holds none."""
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise UserError(f"fixtures {folder}: no such folder. Make fixtures with: {HOW_TO_MAKE}")
    families = sorted(path.stem for path in folder.glob("*.safetensors"))
    if not families:
        inside = folder / "fixtures"
        hint = f"; did you mean {inside}?" if inside.is_dir() else f". Make fixtures with: {HOW_TO_MAKE}"
        raise UserError(f"fixtures {folder}: no *.safetensors file in it{hint}")
    return families
