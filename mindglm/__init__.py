"""mindglm: a MindSpore-native model zoo and training suite for GLM-Image."""

__version__ = "0.1.0"
