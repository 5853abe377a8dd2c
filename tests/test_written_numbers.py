"""Numbers that are written into the JAX side's program are tried as factors; those that are not there are no cause."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import compare
from compare.jax_side.from_data import written_in


class Attention(torch.nn.Module):
    """Weights what it is given by a score of each element."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.out = torch.nn.Linear(5, 1), torch.nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.score(x).squeeze(-1).softmax(1)
        return self.out((weights[..., None] * x).sum(1))


class Port(nnx.Module):
    def __init__(self, divisor: float) -> None:
        rngs = nnx.Rngs(0)
        self.score, self.out = nnx.Linear(5, 1, rngs=rngs), nnx.Linear(5, 3, rngs=rngs)
        self.divisor = divisor

    def __call__(self, x: Any) -> Any:
        weights = jax.nn.softmax(self.score(x)[..., 0] / self.divisor, axis=1)
        return self.out((weights[..., None] * x).sum(1))


@pytest.mark.parametrize("divisor", [1.0, 1.7])
def test_a_divisor_of_the_port_is_named(divisor: float) -> None:
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(6, 4, 5)), rng.normal(size=(6, 3))) for _ in range(2)]
    sides = (
        compare.Torch(Attention(), torch.nn.functional.mse_loss),
        compare.Flax(Port(divisor), lambda y, t: ((y - t) ** 2).mean()),
    )
    report = compare.check(*sides, batches, quick=True)
    if divisor == 1:
        assert report.ok
        return
    assert report.divergence is not None
    assert report.divergence.cause is not None, str(report)
    assert f"a division by {divisor}" in report.divergence.cause.explanation
    assert not report.others


def test_a_number_is_known_by_its_inverse_and_its_square() -> None:
    written = written_in(jax.make_jaxpr(lambda x: x / jnp.sqrt(16.0) + 0.1 * x)(jnp.ones(3)))
    assert written.has_one_of(16)
    assert written.has_one_of(4)
    assert written.has_one_of(10)
    assert not written.has_one_of(6)


class Heavy(torch.optim.Optimizer):
    """Momentum, written by hand."""

    def __init__(self, params: Any, lr: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for weight in group["params"]:
                ball = self.state[weight].setdefault("ball", torch.zeros_like(weight))
                weight.sub_(group["lr"] * ball.mul_(group["momentum"]).add_(weight.grad))
        return None


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, True), (0.8, False)])
def test_a_cause_in_an_optimizer_holds_where_it_goes_on_from_its_own_state(momentum: float, *, nesterov: bool) -> None:
    """Of Nesterov's momentum, each single step is that of another rate and momentum."""

    def init(params: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, params)

    def update(gradients: Any, balls: Any, params: Any = None) -> Any:
        del params
        balls = jax.tree.map(lambda ball, gradient: momentum * ball + gradient, balls, gradients)
        ahead = jax.tree.map(lambda ball, gradient: momentum * ball + gradient, balls, gradients)
        return jax.tree.map(lambda step: -0.05 * step, ahead if nesterov else balls), balls

    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(6, 4)), rng.normal(size=(6, 3))) for _ in range(3)]
    sides = (
        compare.Torch(torch.nn.Linear(4, 3), torch.nn.functional.mse_loss, lambda p: Heavy(p, 0.05, 0.9)),
        compare.Flax(
            nnx.Linear(4, 3, rngs=nnx.Rngs(0)),
            lambda y, t: ((y - t) ** 2).mean(),
            optax.GradientTransformation(init, update),
        ),
    )
    report = compare.check(*sides, batches, quick=True)
    assert report.divergence is not None
    cause = report.divergence.cause
    assert cause is not None
    if nesterov:
        assert cause.name == "another optimizer"  # optax.sgd with Nesterov's momentum
        assert "nesterov" in cause.fix + cause.explanation, cause
    else:
        assert "with 0.8" in cause.explanation, cause
