"""Model folders of the committed fixtures, loaded once, and the checks of the precision card on them."""

import functools

from mindglm.evaluate.precision.card import check_family, left_out
from mindglm.evaluate.precision.families import FAMILIES, Family
from mindglm.evaluate.precision.fixtures import Fixture
from mindglm.evaluate.precision.subject import Subject
from tests.golden import VARIANTS

BY_NAME = {family.name: family for family in FAMILIES}


def subject(variant: str = "base") -> Subject:
    """The Cells of a variant's tiny checkpoint, float32; one object a variant."""
    return _subject(variant)


@functools.lru_cache(maxsize=None)
def _subject(variant: str) -> Subject:
    return Subject(VARIANTS[variant] / "repo")


def fixture_of(family: str, variant: str = "base") -> Fixture:
    return Fixture(VARIANTS[variant] / "fixtures", family)


def rows_and_rest(variant: str, name: str):
    """All rows of a family, and what of the fixture was not compared."""
    fixture = fixture_of(name, variant)
    rows = list(check_family(subject(variant), BY_NAME[name], fixture))
    return rows, left_out(BY_NAME[name], fixture)


def first_departure(family: Family, variant: str = "base") -> str | None:
    """Name of the first tensor over its tolerance; nothing is computed after it."""
    rows = check_family(subject(variant), family, fixture_of(family.name, variant))
    return next((row.name for row in rows if row.bad), None)
