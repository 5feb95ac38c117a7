"""Line 3 of issue 5: all randomness of training comes from mindglm.order, keyed by (seed, step, sample, purpose)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "mindglm"
ROOMS = ("order", "train", "objectives", "models", "ops", "parallel", "data/loader.py")
SOURCES = sorted(path for room in ROOMS for path in ((ROOT / room).rglob("*.py") if (ROOT / room).is_dir()
                                                     else [ROOT / room]))
ALLOWED = {
    "order/randomness.py": {"Generator", "Philox"},  # the source itself
    "objectives/vq_reconstruction.py": {"Generator", "Philox"},  # which codes are re-seeded: keyed by (seed, step)
    "objectives/glyph_alignment.py": {"default_rng"},  # code tables of the format, from the constant 0
    "train/samples.py": {"default_rng"},  # the palette of pictures, from the constant 0
    "train/rehearsal.py": {"default_rng"},  # made-up samples, keyed by their number
}
MAKERS = {"default_rng", "Generator", "Philox", "RandomState", "PCG64", "SeedSequence", "set_seed", "manual_seed",
          "randn", "rand", "randint", "randperm", "normal", "uniform", "bernoulli", "multinomial", "dropout", "Dropout",
          "standard_normal", "shuffle", "urandom", "getrandbits", "uuid4"}
DRAWS = {"standard_normal", "normal", "uniform", "shuffle"}
"""Methods of a generator too: they count only when called on a module (np.random.normal, mint.normal)."""
MODULES = {"random", "np", "numpy", "mint", "ops", "ms", "ms_ops", "nn", "os", "uuid"}


def sources(tree: ast.AST) -> set[str]:
    """Names of calls that make random numbers, or something to draw them from, out of nothing."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None)]
            found.update({"random"} & set(names))
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            owner = node.func.value if isinstance(node.func, ast.Attribute) else None
            of_module = getattr(owner, "attr", getattr(owner, "id", None)) in MODULES
            if name in MAKERS and (of_module or name not in DRAWS and name[0] != "r"):
                found.add(name)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_source_of_random_numbers(path):
    name = str(path.relative_to(ROOT))
    assert sources(ast.parse(path.read_text())) == ALLOWED.get(name, set())


def test_the_check_sees_what_it_should():
    for bad in ("np.random.default_rng(rank)", "np.random.rand(3)", "import random", "mint.normal(0, 1)",
                "np.random.shuffle(x)", "ms.set_seed(1)", "from random import choice", "nn.Dropout(0.1)"):
        assert sources(ast.parse(bad)), bad
    for good in ("generator.standard_normal(3)", "draw(i, 'noise').random()", "ops.rand_like_name", "rng.uniform(0)"):
        assert not sources(ast.parse(good)), good
