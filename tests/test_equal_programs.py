"""Programs that train alike though they are written in other ways, and constants of which several explain the same."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import compare

RNG = np.random.default_rng(3)
BATCHES = [(RNG.normal(size=(6, 5)), RNG.integers(0, 2, (6, 3)).astype(float)) for _ in range(2)]


def with_logits(loss: Any) -> compare.Report:
    """A torch model that ends in a sigmoid, and a port that gives logits."""
    model = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Sigmoid())
    return compare.check(
        compare.Torch(model, torch.nn.BCELoss(), lambda params: torch.optim.SGD(params, 0.1)),
        compare.Flax(nnx.Linear(5, 3, rngs=nnx.Rngs(0)), loss, optax.sgd(0.1)),
        BATCHES,
        device="cpu",
    )


def test_a_loss_of_logits_makes_up_for_a_model_without_its_sigmoid() -> None:
    report = with_logits(lambda out, y: optax.sigmoid_binary_cross_entropy(out, y).mean())
    assert report.verdict == "match", str(report)
    assert any("the gradients and the updates agree" in each.reason for each in report.not_compared)


def test_a_loss_that_makes_up_for_a_part_of_it_does_not() -> None:
    report = with_logits(lambda out, y: optax.sigmoid_binary_cross_entropy(2 * out, y).mean())
    assert report.verdict == "mismatch"


class WithWeights(torch.nn.Module):
    """Gives weights beside its prediction, which is made of them; the loss reads the prediction alone."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = torch.nn.Linear(5, 4), torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.inner(x).softmax(1)
        return self.outer(x).sigmoid(), x.T


class FlaxWithWeights(nnx.Module):
    def __init__(self, *, normalised: bool) -> None:
        self.inner, self.outer = nnx.Linear(5, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 3, rngs=nnx.Rngs(0))
        self.normalised = normalised

    def __call__(self, x: Any) -> Any:
        x = self.inner(x)
        weights = nnx.softmax(x)
        return self.outer(weights), (weights if self.normalised else x).T


@pytest.mark.parametrize("normalised", [True, False])
def test_a_loss_makes_up_for_nothing_that_it_does_not_read(normalised: bool) -> None:
    """The sigmoid is made up for, and the weights are not: the loss ignores them."""
    report = compare.check(
        compare.Torch(WithWeights(), lambda out, y: torch.nn.functional.binary_cross_entropy(out[0], y)),
        compare.Flax(
            FlaxWithWeights(normalised=normalised),
            lambda out, y: optax.sigmoid_binary_cross_entropy(out[0], y).mean(),
        ),
        BATCHES,
        device="cpu",
    )
    assert report.verdict == ("match" if normalised else "mismatch"), str(report)
    assert any("the gradients and the updates agree" in each.reason for each in report.not_compared) or not normalised
    assert normalised or "another operand" in report.headline, report.headline


class Rotary(torch.nn.Module):
    """A rotary embedding, which turns pairs of features by angles that are smaller the later the pair is."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = torch.nn.Linear(5, 8), torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inner(x)
        rates = 1 / (10000.0 ** (torch.arange(0, 8, 2).to(x) / 8))
        angles = torch.outer(torch.arange(x.shape[1]).to(x), rates)
        angles = torch.cat([angles, angles], -1)
        return self.outer(x * angles.cos() + torch.cat([-x[..., 4:], x[..., :4]], -1) * angles.sin())


class FlaxRotary(nnx.Module):
    def __init__(self, base: float) -> None:
        self.inner, self.outer = nnx.Linear(5, 8, rngs=nnx.Rngs(0)), nnx.Linear(8, 3, rngs=nnx.Rngs(0))
        self.base = base

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.inner(x)
        angles = jnp.outer(jnp.arange(x.shape[1]), 1 / self.base ** (jnp.arange(0, 8, 2) / 8))
        angles = jnp.concatenate([angles, angles], -1)
        return self.outer(x * jnp.cos(angles) + jnp.concatenate([-x[..., 4:], x[..., :4]], -1) * jnp.sin(angles))


@pytest.mark.parametrize("base", [1000.0, 500000.0])
def test_the_constant_that_a_user_writes_is_meant(base: float) -> None:
    """Another divisor of the exponent explains another base as well, and would be no short number."""
    batches = [(RNG.normal(size=(2, 6, 5)), None) for _ in range(2)]
    report = compare.check(compare.Torch(Rotary()), compare.Flax(FlaxRotary(base)), batches, device="cpu")
    assert report.divergence is not None
    assert report.divergence.cause is not None
    says = f"pow has the constant 10000, and the JAX side computes what torch would with {base:.0f}"
    assert says in report.divergence.cause.explanation


def test_logits_that_a_mask_rules_out_are_infinite_on_both_sides() -> None:
    class Masked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(5, 4)

        def forward(self, x: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
            return self.inner(x).masked_fill(~allowed, float("-inf"))

    class FlaxMasked(nnx.Module):
        def __init__(self, ruled_out: float) -> None:
            self.inner, self.ruled_out = nnx.Linear(5, 4, rngs=nnx.Rngs(0)), ruled_out

        def __call__(self, x: jax.Array, allowed: jax.Array) -> jax.Array:
            return jnp.where(allowed, self.inner(x), self.ruled_out)

    allowed = RNG.uniform(size=(6, 4)) > 0.4
    target = RNG.integers(0, 4, 6)
    allowed[np.arange(6), target] = True
    batches = [({"x": RNG.normal(size=(6, 5)), "allowed": allowed}, target)]

    def checked(ruled_out: float) -> compare.Report:
        def loss(out: jax.Array, y: jax.Array) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(out, y).mean()

        return compare.check(
            compare.Torch(Masked(), torch.nn.CrossEntropyLoss(), lambda params: torch.optim.SGD(params, 0.1)),
            compare.Flax(FlaxMasked(ruled_out), loss, optax.sgd(0.1)),
            batches,
            device="cpu",
        )

    assert checked(-np.inf).verdict == "match"
    assert checked(0.0).verdict == "mismatch"


def test_a_slope_that_torch_rounds_to_float32_is_no_difference() -> None:
    """The gradient of `torch.nn.functional.hardsigmoid` is 1/6 as float32 has it, in float64 too."""
    batches = [(np.random.default_rng(0).normal(size=(8, 3)), np.random.default_rng(1).normal(size=(8, 2)))]
    original = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Hardsigmoid())
    port = nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), jax.nn.hard_sigmoid)
    sides = (
        compare.Torch(original, torch.nn.MSELoss(), lambda params: torch.optim.SGD(params, 0.1)),
        compare.Flax(port, lambda output, target: jnp.mean((output - target) ** 2), optax.sgd(0.1)),
    )
    assert compare.check(*sides, batches).verdict == "match"


class Distances(torch.nn.Module):
    """A gate with two constants that are written before an operand."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inner(x)
        return (3.0 - x) + (0.1 / (x.square().sum(-1, keepdim=True) + 1))


@pytest.mark.parametrize(
    ("least", "radius", "says"),
    [(2.5, 0.1, "sub has the constant 3, and .* with 2.5"), (3.0, 0.02, "div has the constant 0.1, and .* with 0.02")],
)
def test_a_constant_before_an_operand(least: float, radius: float, says: str) -> None:
    class FlaxDistances(nnx.Module):
        def __init__(self) -> None:
            self.inner = nnx.Linear(5, 4, rngs=nnx.Rngs(0))

        def __call__(self, x: jax.Array) -> jax.Array:
            x = self.inner(x)
            return (least - x) + (radius / ((x**2).sum(-1, keepdims=True) + 1))

    batches = [(RNG.normal(size=(6, 5)), None) for _ in range(2)]
    report = compare.check(compare.Torch(Distances()), compare.Flax(FlaxDistances()), batches, device="cpu")
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert re.search(says, report.divergence.cause.explanation), report.divergence.cause.explanation


def test_a_quotient_whose_divisor_is_left_out() -> None:
    """No norm of one, and no root of what is nearly one, which would leave as little by chance."""

    class FlaxDistances(nnx.Module):
        def __init__(self) -> None:
            self.inner = nnx.Linear(5, 4, rngs=nnx.Rngs(0))

        def __call__(self, x: jax.Array) -> jax.Array:
            return (3.0 - self.inner(x)) + 0.1

    batches = [(RNG.normal(size=(6, 5)), None) for _ in range(2)]
    report = compare.check(compare.Torch(Distances()), compare.Flax(FlaxDistances()), batches, device="cpu")
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert report.divergence.cause.name == "operation left out"
    assert "leaves out the division of 0.1 by" in report.divergence.cause.explanation


def test_a_term_that_is_nothing_has_no_other_constant() -> None:
    """A penalty of what exceeds a bound that nothing reaches on these batches: its weight is right."""

    def ours(given: Any, y: Any) -> Any:
        return torch.nn.functional.mse_loss(given, y) + 10.0 * (given - 9).square().mean()

    def theirs(given: Any, y: Any) -> Any:
        return jnp.mean((given - y) ** 2) + 10.0 * jnp.mean(jnp.maximum(given - 9, 0) ** 2)

    batches = [(RNG.normal(size=(6, 5)), RNG.normal(size=(6, 4))) for _ in range(3)]
    flax = compare.Flax(nnx.Linear(5, 4, rngs=nnx.Rngs(0)), theirs)
    report = compare.check(compare.Torch(torch.nn.Linear(5, 4), ours), flax, batches, device="cpu")
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert "or has zero there, and continues with the output of mse_loss" in report.divergence.cause.explanation
