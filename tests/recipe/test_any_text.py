"""Whatever is written in a recipe or behind it ends in a recipe or in one UserError, never in a fault."""

import random

import pytest

from mindglm import recipe
from mindglm.errors import UserError
from tests.recipe.shipped import ROOT

PIECES = ["{", "}", "[", "]", ":", " ", "\n", "- ", "&a ", "*a ", "!!x ", "-1", "0", "null", "1e400", "9" * 40, "''",
          "true", "\t", "#", "|", "> ", "%", "\u2028", "é", "-", "1e-6", "?", "---\n", "type", "<<: ", "base: x\n"]
KEYS = ["model", "model.model_config", "objective", "trainer", "trainer.type", "train_dataset.buckets", "base",
        "parallel_config", "model.model_config.text_config", "optimizer.betas", "pretrained_model_dir"]


def changed(text: str, rng: random.Random) -> str:
    """A piece put in, a few characters taken out, or a part written over another."""
    place, kind = rng.randrange(len(text)), rng.random()
    if kind < 0.4:
        return text[:place] + rng.choice(PIECES) + text[place:]
    if kind < 0.7:
        return text[:place] + text[place + rng.randint(1, 12):]
    other = rng.randrange(len(text))
    return text[:place] + text[other:other + 20] + text[place + 20:]


@pytest.mark.parametrize("name", ["ar", "vae"])
def test_changed_texts(name):
    rng, outcomes = random.Random(name), set()
    whole = (ROOT / "recipes" / "nano" / f"{name}.yaml").read_text()
    for _ in range(200):
        text = whole
        for _ in range(rng.randint(1, 4)):
            text = changed(text, rng)
        try:
            outcomes.add(type(recipe.loads(text, "r.yaml")))
        except UserError as error:
            outcomes.add(type(error))
            assert str(error).startswith("r.yaml"), error
    assert outcomes == {recipe.Recipe, UserError}


def test_any_overrides():
    rng, refused = random.Random(3), 0
    text = (ROOT / "recipes" / "nano" / "dit.yaml").read_text()
    for _ in range(200):
        overrides = [f"{rng.choice(KEYS)}={''.join(rng.choices(PIECES, k=rng.randint(0, 4)))}" for _ in range(2)]
        try:
            recipe.loads(text, "r.yaml", overrides)
        except UserError:
            refused = refused + 1
    assert refused > 100
