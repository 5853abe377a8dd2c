"""What a step computes, what a training run leaves behind, and what both start from."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch


class Problem(Protocol):
    """What to fit, and the weights to start from: `compare.Problem`, or anything with these attributes.

    In the notebook's orientation, float32 or float64: `x` is `(N, D_in)`, `y` `(N, D_out)`, `w1` `(D_in, H)`,
    `b1` `(H,)`, `w2` `(H, D_out)` and `b2` `(D_out,)`. `manual` and `autograd` have no biases.
    """

    @property
    def x(self) -> Any: ...  # noqa: D102
    @property
    def y(self) -> Any: ...  # noqa: D102
    @property
    def w1(self) -> Any: ...  # noqa: D102
    @property
    def b1(self) -> Any: ...  # noqa: D102
    @property
    def w2(self) -> Any: ...  # noqa: D102
    @property
    def b2(self) -> Any: ...  # noqa: D102


class Step(NamedTuple):
    """Everything that one step computes. Weights and optimizer state are live: the next step overwrites them."""

    loss: torch.Tensor
    """Scalar, of the weights *before* the update."""
    gradients: Mapping[str, torch.Tensor]
    weights: Mapping[str, torch.Tensor]
    """After the update, under PyTorch's names."""
    optimizer: Mapping[str, Mapping[str, torch.Tensor]] = {}
    """Optimizer state after the update: for each weight, its tensors by PyTorch's names."""


class Trajectory(NamedTuple):
    """A whole training run."""

    losses: torch.Tensor
    """Shape `(steps,)`: the loss of each step, taken before that step's update."""
    weights: dict[str, torch.Tensor]
    """The final weights, named and oriented as in the problem: `w1` is `(D_in, H)`."""


def tensor(array: Any, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Copy `array`: a tensor that shares its memory would change it in place."""
    return torch.from_numpy(np.array(array)).to(device, dtype)


def positive(steps: int) -> int:
    """Return `steps`, or raise ValueError if it is not a positive whole number."""
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"steps must be a positive whole number, not {steps!r}")
    return steps
