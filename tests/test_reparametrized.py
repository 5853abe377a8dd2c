"""Weight normalization and spectral normalization, wherever each framework files their tensors."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen, nnx
from in_ci import some
from torch import nn
from torch.nn.utils import parametrizations

import compare
from compare.report.report import Report

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")


def original(normalized: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(normalized(nn.Linear(4, 5, bias=False)), nn.Tanh(), normalized(nn.Linear(5, 3)))


class LinenPort(linen.Module):
    spectral: bool = False
    epsilon: float = 0.0  # torch has none; what Flax adds by default, 1e-12, float64 sees

    @linen.compact
    def __call__(self, x: Any, train: bool = True) -> Any:
        def normalized(layer: Any) -> Any:
            if self.spectral:
                return lambda x: linen.SpectralNorm(layer, epsilon=self.epsilon)(x, update_stats=train)
            return linen.WeightNorm(layer, epsilon=self.epsilon, variable_filter={"kernel"})

        x = jnp.tanh(normalized(linen.Dense(5, use_bias=False, name="first"))(x))
        return normalized(linen.Dense(3, name="second"))(x)


class NnxPort(nnx.Module):
    def __init__(self, normalized: Any) -> None:
        rngs = nnx.Rngs(0)
        self.first = normalized(nnx.Linear(4, 5, use_bias=False, rngs=rngs), rngs=rngs)
        self.second = normalized(nnx.Linear(5, 3, rngs=rngs), rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.second(jnp.tanh(self.first(x)))


def checked(model: nn.Module, port: Any, **options: Any) -> Report:
    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal((6, 4)), rng.standard_normal((6, 3))) for _ in range(2)]
    if isinstance(port, linen.Module):
        port = port, port.init(jax.random.key(0), jnp.zeros((1, 4)))
    return compare.check(
        compare.Torch(model, nn.MSELoss(), lambda params: torch.optim.SGD(params, 0.1)),
        compare.Flax(port, lambda y, target: jnp.mean((y - target) ** 2), optax.sgd(0.1)),
        batches,
        **options,
    )


@pytest.mark.parametrize("normalized", [parametrizations.weight_norm, nn.utils.weight_norm], ids=["new", "old"])
def test_weight_norm(normalized: Any) -> None:
    report = checked(original(normalized), LinenPort())
    assert report.verdict == "match"
    assert "WeightNorm_0/first/kernel/scale" in dict(report.weights).values()


def test_a_wrong_epsilon_of_a_weight_norm_is_a_mismatch() -> None:
    assert checked(original(parametrizations.weight_norm), LinenPort(epsilon=1e-2)).verdict == "mismatch"


@pytest.mark.parametrize("flax", some(["linen", "nnx"], ["nnx"]))
def test_spectral_norm(flax: str) -> None:
    port = LinenPort(spectral=True) if flax == "linen" else NnxPort(functools.partial(nnx.SpectralNorm, epsilon=0.0))
    report = checked(original(nn.utils.spectral_norm), port)
    assert report.verdict == "match"
    assert "0.weight_u" in dict(report.weights)
    assert "0.weight_v" in {each.name for each in report.not_compared}


@pytest.mark.slow
def test_the_parametrization_iterates_in_another_order() -> None:
    """It computes u from the v of the step before, and Flax v from u: after an update they are not the same."""
    report = checked(original(parametrizations.spectral_norm), LinenPort(spectral=True))
    assert "0.parametrizations.weight.0._u" in dict(report.weights)
    assert report.verdict == "mismatch"
