"""In which order a port flattens an image is seen whatever is wrong before it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen
from torch import nn

import compare


class Original(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.conv = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 6, 3)
        self.norm, self.fc = nn.GroupNorm(6, 6), nn.Linear(6 * 8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.norm(self.conv(torch.relu(self.wide(x)))))
        return self.fc(nn.functional.avg_pool2d(x, 2).flatten(1))


class Projection(nn.Module):
    """A linear layer of the user's own, which neither its name nor its base class shows."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(outputs, inputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T + self.bias


class Port(linen.Module):
    wrong: bool
    channels_first: bool

    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = linen.relu(linen.Conv(4, (3, 3), padding="VALID", name="wide")(x))
        x = linen.Conv(6, (3, 3), padding="VALID", name="conv")(x)
        x = linen.GroupNorm(6, epsilon=1e-5, name="norm")(x)
        x = linen.avg_pool(linen.sigmoid(x) if self.wrong else jnp.tanh(x), (2, 2), strides=(2, 2))
        x = x.transpose(0, 3, 1, 2) if self.channels_first else x
        return linen.Dense(5, name="fc")(x.reshape(len(x), -1))


@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("layer", [nn.Linear, Projection])
def test_the_order_is_no_finding(layer: Any, wrong: bool, channels_first: bool) -> None:
    torch.manual_seed(0)
    original = Original()
    original.fc = layer(6 * 8, 5)
    port, x = Port(wrong, channels_first), np.random.default_rng(0).standard_normal((3, 2, 8, 12))
    report = compare.check(
        compare.Torch(original),
        compare.Flax(
            (port, port.init(jax.random.key(0), jnp.zeros((1, 8, 12, 2)))),
            batch=lambda x, target: (np.moveaxis(x, 1, -1), target),
        ),
        [(x, None)],
    )
    assert report.verdict == ("mismatch" if wrong else "match")
    if wrong:
        assert report.divergence is not None
        assert report.divergence.cause is not None
        assert report.divergence.cause.name == "activation"
        assert report.others == []


class Normed(nn.Module):
    """Nothing before its activation has channels that could be changed: no convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = nn.GroupNorm(3, 3), nn.Linear(3 * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(nn.functional.gelu(self.norm(x)).flatten(1))


class NormedPort(linen.Module):
    channels_first: bool

    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = linen.GroupNorm(3, epsilon=1e-5, name="norm")(x)
        x = jax.nn.softplus(x)
        x = x.transpose(0, 3, 1, 2) if self.channels_first else x
        return linen.Dense(5, name="fc")(x.reshape(len(x), -1))


@pytest.mark.parametrize("channels_first", [False, True])
def test_the_order_is_seen_behind_an_activation_that_is_another_function(channels_first: bool) -> None:
    torch.manual_seed(0)
    port, x = NormedPort(channels_first), np.random.default_rng(0).standard_normal((3, 3, 2, 2))
    report = compare.check(
        compare.Torch(Normed()),
        compare.Flax(
            (port, port.init(jax.random.key(0), jnp.zeros((1, 2, 2, 3)))),
            batch=lambda x, target: (np.moveaxis(x, 1, -1), target),
        ),
        [(x, None)],
    )
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert report.divergence.cause.name == "activation", str(report)
