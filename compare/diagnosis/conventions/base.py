"""The columns of this package's tables: what may be different on the JAX side."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from compare.diagnosis.place import Place
from compare.diagnosis.rewriting import Call, Rewrite
from compare.verdict.fix import Code

DROPOUT = "dropout on one side"
"""The name of a dropout that one side leaves out."""

NORMS = ("layer_norm", "group_norm", "batch_norm", "instance_norm", "rms_norm")

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")

TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")

LOSSES = (
    *("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "cross_entropy", "nll_loss", "kl_div"),
    *("binary_cross_entropy", "binary_cross_entropy_with_logits", "poisson_nll_loss", "ctc_loss"),
)

DOCS = "https://docs.pytorch.org/docs/stable/generated/"

FLAX = "https://flax.readthedocs.io/en/latest/api_reference/flax.nnx/nn/"

JAX = "https://docs.jax.dev/en/latest/_autosummary/"


Fix = Callable[[Call, Place], Code | str | None]
"""Gives what to write on the JAX side for torch's call: code, words where no code says it, or None."""


def says(words: str) -> Fix:
    """Fix by words that need nothing of the call."""
    return lambda call, place: words


def writes(call: str, *arguments: str, around: str = "{}", **keywords: Any) -> Fix:
    """Fix by code that needs nothing of torch's call."""
    code = Code(call, arguments or ("...",), keywords, around)
    return lambda torch, place: code


def sets(kind: str, argument: str, *names: str) -> Fix:
    """Fix by giving a layer of this kind torch's value of an argument, under the first of `names` that it takes."""

    def fix(call: Call, place: Place) -> Code | None:
        value = call[argument]
        return None if value is None else place.setting(kind, value, *names)

    return fix


class Setting(NamedTuple):
    """A number among the arguments of a function. What the JAX side has in its place is found by fitting."""

    name: str
    functions: tuple[str, ...]
    argument: str
    fix: Fix
    source: str
    default: Callable[[Call], float | None] = lambda call: None
    """The value that None means."""
    within: tuple[float, float] = (-math.inf, math.inf)
    """What anybody may give it: a number beyond is fitted to something else."""


class Variants(NamedTuple):
    """Other values of an argument that is not a number to be fitted."""

    name: str
    functions: tuple[str, ...]
    argument: str
    values: Callable[[Call], Iterator[Any]]
    fix: Fix
    source: str
    theirs: Callable[[Call, Any], tuple[str, ...]] = lambda call, value: ()
    """How the JAX side may write a value: see `Code.before`."""


class Alternative(NamedTuple):
    """Something else that the JAX side may compute in place of a function, or in place of its gradient."""

    name: str
    functions: tuple[str, ...]
    compute: Rewrite
    jax_does: str
    """As a clause: "pads as XLA's SAME does"."""
    fix: Fix
    source: str
    applies: Callable[[Call], bool] = lambda call: True
    gradient: bool = False
    """Whether it shows in the gradient alone."""
    may_be_torchs: bool = False
    """Whether torch may compute the same already, as a mean over all elements of a batch of single numbers."""
