"""A public report of a port that went wrong, written again as a small pair with a right and a wrong half."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import compare

Half = Callable[..., tuple[Any, Any, list[Any]]]


class Report(NamedTuple):
    """One report, and what a check of its two halves must say."""

    name: str
    url: str
    """Where it was reported: `owner/repository#number` at GitHub."""
    pair: Half
    """Gives both sides and the batches: of the port with the fault by `pair(wrong=True)`."""
    stage: str
    """Where the wrong half must first differ."""
    place: str = ""
    """The beginning of the path on the torch side."""
    words: str = ""
    """Words of the cause, separated by |; "" where the place alone can be known."""
    right: tuple[str, ...] = ("match",)
    wrong: str = "mismatch"
    steps: int = 4


class TorchMLP(torch.nn.Module):
    def __init__(self, inputs: int = 6, hidden: int = 10, outputs: int = 2) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(inputs, hidden), torch.nn.Linear(hidden, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.tanh(self.up(x)))


class FlaxMLP(nnx.Module):
    def __init__(self, inputs: int = 6, hidden: int = 10, outputs: int = 2, dtype: Any = jnp.float32) -> None:
        rngs = nnx.Rngs(0)
        self.up = nnx.Linear(inputs, hidden, param_dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(hidden, outputs, param_dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jnp.tanh(self.up(x)))


def mse(output: Any, target: Any) -> Any:
    return ((output - target) ** 2).mean()


def normal(*shapes: tuple[int, ...], count: int = 3, seed: int = 0) -> list[Any]:
    """Draw batches of normal numbers: inputs, and targets last."""
    rng = np.random.default_rng(seed)
    return [tuple(rng.normal(size=shape) for shape in shapes) for _ in range(count)]


def check(report: Report, *, wrong: bool) -> compare.Report:
    torch.manual_seed(1)
    return compare.check(*report.pair(wrong=wrong), steps=report.steps, device="cpu")
