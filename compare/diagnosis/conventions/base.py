"""What may be otherwise on the JAX side: the columns of the tables of this package."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from compare.diagnosis.rewriting import Call, Rewrite

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


class Setting(NamedTuple):
    """A number among the arguments of a function. What the JAX side has in its place is found by fitting."""

    name: str
    functions: tuple[str, ...]
    argument: str
    fix: Callable[[float], str]
    """What to write on the JAX side, for torch's value; "{}" is the layer or function there."""
    source: str
    default: Callable[[Call], float | None] = lambda call: None
    """What None stands for."""


class Variants(NamedTuple):
    """Other values of an argument that is no number to be fitted."""

    name: str
    functions: tuple[str, ...]
    argument: str
    values: Callable[[Call], Iterator[Any]]
    fix: str
    source: str


class Alternative(NamedTuple):
    """Something else that the JAX side may compute in place of a function, or in place of its gradient."""

    name: str
    functions: tuple[str, ...]
    compute: Rewrite
    jax_does: str
    """As a clause: "pads as XLA's SAME does"."""
    fix: str
    """"{}" is the layer or function on the JAX side, and {name} an argument of torch's call."""
    source: str
    applies: Callable[[Call], bool] = lambda call: True
    gradient: bool = False
    """Whether it shows in the gradient alone."""
