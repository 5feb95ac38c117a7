"""Recipes: one YAML file describes one training run. Pure Python, no MindSpore."""

from mindglm.recipe.schema import Recipe

__all__ = ["Recipe", "load", "loads", "resolve", "to_yaml"]


def __getattr__(name: str):
    """load, loads, resolve and to_yaml, imported when asked for: the structures alone (ckpt_tools) need no PyYAML."""
    if name in __all__:
        from mindglm.recipe import loading

        return getattr(loading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
