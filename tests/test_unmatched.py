"""Weights that do not fit one another: the error says where the fault is."""

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
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 5, 3, stride=2)
        self.fc = nn.Linear(5 * 9, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.second(torch.relu(self.first(x)))).flatten(1))


class Port(linen.Module):
    padding: str = "VALID"

    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = linen.relu(linen.Conv(4, (3, 3), padding="SAME")(x))
        x = linen.relu(linen.Conv(5, (3, 3), strides=2, padding=self.padding)(x))
        return linen.Dense(3)(x.reshape(x.shape[0], -1))


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_a_flattened_image_of_another_size_is_traced_to_its_layer(padding: str) -> None:
    port = Port(padding)
    sides = (
        compare.Torch(Original()),
        compare.Flax(
            (port, port.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))),
            batch=lambda x, target: (np.moveaxis(x, 1, -1), target),
        ),
        [(np.random.default_rng(0).standard_normal((2, 1, 8, 8)), None)],
    )
    if padding == "VALID":
        assert compare.check(*sides).verdict == "match"
        return
    with pytest.raises(
        compare.InputError,
        match=r"first differ at the output of second \(2, 5, 3, 3\) in torch, and of Conv_1 \(2, 4, 4, 5\) in JAX",
    ):
        compare.check(*sides)
