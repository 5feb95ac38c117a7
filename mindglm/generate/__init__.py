"""Text and source images to image: AR code sampling, flow sampling, and the pipeline of a released-layout folder.

`cli_run` is what `mindglm generate` calls. Nothing is imported here that needs MindSpore: checks of the
arguments come first and answer at once.
"""

from mindglm.generate.command import cli_run

__all__ = ["cli_run"]
