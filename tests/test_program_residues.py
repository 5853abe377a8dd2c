"""Gradients that an edit of torch's step makes zero: what rounding leaves of them is no difference."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch.nn import functional

import compare
from compare.comparison.weighing import Residues


class Attention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.head = (torch.nn.Linear(4, size) for size in (4, 4, 4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = torch.softmax(self.q(x) @ self.k(x).transpose(1, 2) / 2, -1)
        return self.head(torch.tanh(weights @ self.v(x)).mean(1))


class Port(nnx.Module):
    def __init__(self, axis: int, rngs: nnx.Rngs) -> None:
        self.q, self.k, self.v, self.head = (nnx.Linear(4, size, rngs=rngs) for size in (4, 4, 4, 3))
        self.axis = axis

    def __call__(self, x: jax.Array) -> jax.Array:
        weights = jax.nn.softmax(self.q(x) @ self.k(x).swapaxes(1, 2) / 2, self.axis)
        return self.head(jnp.tanh(weights @ self.v(x)).mean(1))


def original() -> Any:
    model = Attention()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)

    def step(_: Any, batch: Any) -> Any:
        loss = functional.cross_entropy(model(batch["x"]), batch["y"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    return {"model": model, "optimizer": optimizer}, step


def port(axis: int, rate: float) -> Any:
    def build() -> Any:
        model = Port(axis, nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.adam(rate), wrt=nnx.Param)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            def loss_of(model: Any) -> Any:
                return optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["y"]).mean()

            loss, gradients = nnx.value_and_grad(loss_of)(state["model"])
            state["optimizer"].update(state["model"], gradients)
            return state, {"loss": loss}

        return {"model": model, "optimizer": optimizer}, step

    return build


@pytest.mark.parametrize(
    ("rate", "expected"),
    [(1e-2, ["another axis"]), (5e-3, ["another axis", "learning rate"])],
    ids=["alone", "beside another"],
)
@pytest.mark.slow
def test_what_rounding_leaves_of_a_gradient_is_no_finding(rate: float, expected: list[str]) -> None:
    """With a softmax over the queries, their bias adds the same to all that it is normalized over."""
    rng = np.random.default_rng(0)
    batches = [{"x": rng.normal(size=(5, 3, 4)), "y": rng.integers(0, 3, 5)} for _ in range(3)]
    sides = compare.TorchProgram(original), compare.JaxProgram(port(-2, rate))
    report = compare.check(*sides, batches, steps=3, device="cpu", quick=True)
    assert report.divergence is not None
    assert not report.bugs
    names = [each.cause.name if each.cause else "" for each in (report.divergence, *report.others)]
    assert names == expected, str(report)


def test_a_gradient_of_one_side_alone_is_no_residue() -> None:
    base: Any = SimpleNamespace(sizes=[(1.0, 0.0)], expected=np.array([1e-15]), subjects=(("w",), ("w",)))
    pairings: list[Any] = [SimpleNamespace(stage=stage) for stage in ("gradient", "update")]
    gradient, update = pairings
    tiny, small = np.full(3, 1e-18), np.full(3, 1e-9)
    residues = Residues()
    assert not residues.has(gradient, base, 0, tiny, small)
    assert not residues.has(update, base, 0, tiny, small)
    assert residues.has(gradient, base, 0, tiny, -tiny)
    assert residues.has(update, base, 0, tiny, small), "Adam divides a residue by its own size"
