"""Moves what operations of torch give by their rounding, to measure what follows from it."""

from typing import TYPE_CHECKING, Any

from compare.numerics.distance import ULPS

if TYPE_CHECKING:
    import numpy as np
    import torch


def moved(
    name: str, output: Any, noise: "np.random.Generator", operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Return what an operation of aten has given, moved if it is one of those whose rounding is measured.

    Args:
        name: The operation's, without its overload.
        output: What it has given.
        noise: Draws whether each number moves up or down.
        operation: The operation, to measure the sizes of the terms of a sum.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    """
    if name in _CANCELLING:
        return _moved(output, noise, args[0].abs())
    # The rounding error of a sum of n terms is at most about n u times the sum of their absolute values, in any order
    # of summation (Higham, Accuracy and Stability of Numerical Algorithms, chapter 4). That sum gives the scale here.
    if name in _SUMS and not _is_whole(args[0]):
        return _moved(output, noise, operation(args[0].abs(), *args[1:], **kwargs))
    return _moved(output, noise) if name in _TRANSCENDENTAL else output


_TRANSCENDENTAL = {
    *("exp", "expm1", "log", "log1p", "erf", "erfc", "tanh", "sigmoid", "softplus", "log_sigmoid_forward"),
    *("elu", "celu", "silu", "mish", "_softmax", "_safe_softmax", "_log_softmax"),
    "sgn",  # a sum of signs that cancels, the gradient of an absolute error, is rounding that depends on no weight
}
"""Functions whose last digits depend on the library."""

_CANCELLING = {"gelu", "gelu_backward"}
"""Functions that lose digits: torch computes GELU by 1 + erf(x), which is rounded as 1 is. Both are moved by units in
the last place of their first argument."""

_SUMS = {"sum", "mean"}
"""Functions that are rounded as the sum of the sizes of their terms is, whatever is left of it: the gradient of a bias
that is zero in exact arithmetic is 1e-16 or nothing, as the terms come, and an optimizer may divide it by its size."""


def _is_whole(tensor: "torch.Tensor") -> bool:
    """Tell whether it has whole numbers alone: their sum is exact, and may be an index."""
    return not tensor.is_floating_point() or bool((tensor == tensor.round()).all())


def _moved(output: Any, noise: "np.random.Generator", size: Any = None) -> Any:
    """Move numbers by units in the last place of themselves or of `size`, up or down; where that is zero they stay."""
    import torch

    if isinstance(output, tuple):
        return tuple(_moved(each, noise) for each in output)
    if not isinstance(output, torch.Tensor) or not output.is_floating_point():
        return output
    ulps = ULPS * torch.finfo(output.dtype).eps
    # Two libraries' exp or tanh differ by a unit or two in the last place (XLA's polynomials against
    # SLEEF's), systematically and not at random. Moving by ULPS in either direction covers both.
    signs = output.new_tensor(noise.choice((-ulps, ulps), tuple(output.shape)))
    return output * (1 + signs) if size is None else output + size * signs
