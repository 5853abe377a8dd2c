"""The worked example: a notebook's five programs and their ports."""

from compare.notebook.comparison import VARIANTS, run

__all__ = ["VARIANTS", "run"]
