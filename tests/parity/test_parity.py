"""Every fixture family of every committed structure, by the checks of the precision card."""

import pytest

from mindglm.evaluate.precision.card import line
from mindglm.evaluate.precision.families import FAMILIES
from tests.golden import VARIANTS
from tests.parity.subjects import BY_NAME, rows_and_rest

PAIRS = [(variant, family.name) for variant, folder in VARIANTS.items() for family in FAMILIES
         if (folder / "fixtures" / f"{family.name}.safetensors").exists()]
UNREAD = "no check reads it"


@pytest.mark.parametrize("variant, family", PAIRS)
def test_family_equals_the_reference(variant, family):
    rows, rest = rows_and_rest(variant, family)
    bad = [line(row) for row in rows if row.bad]
    assert rows and not bad, "\n".join(bad)
    assert not [name for name, reason in rest.items() if reason == UNREAD], "a tensor of the fixture is not compared"


def test_all_families_of_the_base_structure_are_there():
    files = {path.stem for path in (VARIANTS["base"] / "fixtures").glob("*.safetensors")}
    assert files == set(BY_NAME) and len(files) == 14
    assert {"base", "deep", "flat"} <= set(VARIANTS)
