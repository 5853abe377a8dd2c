"""A port that keeps what torch drops: the comparison that decides is what it leaves out."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import compare

CAPACITY = 3


class Original(torch.nn.Module):
    """Sends each of an expert's examples through it, up to its capacity."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.expert = torch.nn.Linear(4, 2), torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen = torch.nn.functional.one_hot(self.gate(x).argmax(-1), 2)
        place = (torch.cumsum(chosen, 0) * chosen).sum(-1) - 1
        keep = place < CAPACITY
        return x + torch.where(keep[:, None], self.expert(x), torch.zeros_like(x))


class Port(nnx.Module):
    def __init__(self, *, drops: bool) -> None:
        rngs = nnx.Rngs(0)
        self.gate, self.expert = nnx.Linear(4, 2, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)
        self.drops = drops

    def __call__(self, x: jax.Array) -> jax.Array:
        chosen = jax.nn.one_hot(self.gate(x).argmax(-1), 2, dtype=jnp.int32)
        place = (jnp.cumsum(chosen, 0) * chosen).sum(-1) - 1
        keep = place < CAPACITY if self.drops else jnp.ones(len(x), bool)
        return x + jnp.where(keep[:, None], self.expert(x), 0)


def checked(*, drops: bool) -> compare.Report:
    torch.manual_seed(0)
    batches = [(np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32), None)]
    return compare.check(compare.Torch(Original()), compare.Flax(Port(drops=drops)), batches)


def test_it_is_the_comparison_and_not_the_count() -> None:
    assert checked(drops=True).ok
    report = checked(drops=False)
    assert report.divergence
    assert report.divergence.cause
    said = report.divergence.cause.explanation
    assert "leaves out" in said
    assert "cumsum" not in said
