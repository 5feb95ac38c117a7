"""Recipes: one YAML file describes one training run. Pure Python, no MindSpore."""

from mindglm.recipe.loading import load, loads, to_yaml
from mindglm.recipe.schema import Recipe

__all__ = ["Recipe", "load", "loads", "to_yaml"]
