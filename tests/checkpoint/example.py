"""A small training checkpoint, as one process or as several write it."""

import numpy as np

from mindglm.checkpoint import store

SHAPES = {"layer.0.weight": (4, 3), "layer.1.weight": (5, 2), "norm": (7,), "bias": ()}


def arrays(step: int) -> dict[str, dict[str, np.ndarray]]:
    """{kind: {name: array}}, functions of the step."""
    rng = np.random.default_rng(step)
    model = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    return {"model": model, "opt": {f"adam_m.{name}": array * 2 for name, array in model.items()},
            "ema": {name: array + 1 for name, array in model.items()}}


def common(step: int, **more) -> dict:
    return {"global_step": step, **more}


def recipe_text(step: int) -> str:
    return f"seed: {step}\n"


def files(step: int) -> dict[str, bytes]:
    return {"ledger.jsonl": b"".join(b'{"step": %d}\n' % i for i in range(step))}


def save(root, step, keep=2, keep_best=0, **more):
    """Save as one process."""
    return store.save(root, step, arrays(step), common(step, **more), recipe_text(step), "run", keep, keep_best,
                      files(step))


def cut(kinds: dict, ranks: int) -> list[dict[str, list[store.Part]]]:
    """What each of some ranks owns when every tensor is cut into as many ranges."""
    parts = [{kind: [] for kind in kinds} for _ in range(ranks)]
    for kind, tensors in kinds.items():
        for name, array in tensors.items():
            ends = [array.size * rank // ranks for rank in range(ranks + 1)]
            for rank, (a, b) in enumerate(zip(ends, ends[1:])):
                if a < b:
                    parts[rank][kind].append(store.Part(name, array.shape, array.reshape(-1)[a:b], a))
    return parts


def save_sharded(root, step, ranks, kinds=None):
    """Save as several ranks, one after the other; every tensor is cut."""
    folder = store.staging(root, step)
    store.begin(folder)
    listings = [store.write_part(folder, parts, "run", rank, ranks)
                for rank, parts in enumerate(cut(kinds or arrays(step), ranks))]
    final = store.commit(folder, listings, store.texts(common(step), recipe_text(step), files(step)))
    store.tidy(root, step, 2)
    return final


def is_of_step(loaded: store.Loaded, step: int) -> bool:
    """Whether a loaded checkpoint is that of `step`, whole, to the last bit."""
    wanted = arrays(step)
    return (loaded.step, loaded.common["global_step"], loaded.recipe_text, loaded.files) == (
        step, step, recipe_text(step), files(step)) and {
        kind: {name: array.tobytes() for name, array in tensors.items()} for kind, tensors in loaded.tensors.items()} \
        == {kind: {name: array.tobytes() for name, array in tensors.items()} for kind, tensors in wanted.items()}
