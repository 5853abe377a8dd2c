"""Weights that do not fit one another: the error says where the fault is."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen
from torch import nn

import compare
from compare.torch_side.copies import Copies


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


class Weighted(nn.Module):
    """Learns how much each output counts."""

    def __init__(self) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(3))

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return ((output - target) ** 2 * torch.exp(-self.log_variance) + self.log_variance).mean()


def test_a_loss_that_is_trained_is_refused_by_name() -> None:
    """As part of the model it is compared; one that the optimizer leaves alone is a loss like any other."""
    loss = Weighted()
    batches = [(np.ones((5, 4)), np.ones((5, 3)))] * 2
    port = {"weight": jnp.zeros((3, 4)), "bias": jnp.zeros(3)}

    def apply(params: Any, x: Any) -> Any:
        return x @ params["weight"].T + params["bias"]

    def mean_square(output: Any, target: Any) -> Any:
        return jnp.mean((output - target) ** 2)

    side = compare.Jax(apply, port, mean_square, optax.sgd(0.1))
    with pytest.raises(compare.InputError, match=r"loss=Weighted.* optimizer trains, log_variance \(3,\): "):
        compare.check(
            compare.Torch(nn.Linear(4, 3), loss, lambda params: torch.optim.SGD([*params, *loss.parameters()], 0.1)),
            side,
            batches,
        )
    original = compare.Torch(nn.Linear(4, 3), loss, lambda params: torch.optim.SGD(params, 0.1))
    assert compare.check(original, side, batches).verdict == "match"

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.uncertainty = nn.Linear(4, 3), Weighted()

        def forward(self, x: torch.Tensor) -> Any:
            return self.fc(x), self.uncertainty.log_variance

    def weighted(outputs: Any, target: Any) -> Any:
        output, log_variance = outputs
        exp = torch.exp if isinstance(output, torch.Tensor) else jnp.exp
        return ((output - target) ** 2 * exp(-log_variance) + log_variance).mean()

    both = compare.Jax(
        lambda params, x: (apply(params["fc"], x), params["log_variance"]),
        {"fc": port, "log_variance": jnp.zeros(3)},
        weighted,
        optax.sgd(0.1),
    )
    original = compare.Torch(Model(), weighted, lambda params: torch.optim.SGD(params, 0.1))
    assert compare.check(original, both, batches).verdict == "match"


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_module_that_keeps_computed_tensors_is_copied() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.utils.weight_norm(nn.Linear(4, 3))
            self.seen: dict[str, Any] = {}

        def forward(self, x: torch.Tensor) -> Any:
            self.seen["hidden"] = [self.fc(x)]
            return torch.tanh(self.seen["hidden"][0])

    model = Keeps()
    model(torch.ones(2, 4)).sum().backward()
    kept = model.seen["hidden"][0]
    (copy,) = Copies(model).modules
    assert isinstance(copy, Keeps)
    assert copy.fc.weight_v is not model.fc.weight_v
    assert torch.equal(copy(torch.ones(2, 4)), model(torch.ones(2, 4)))
    assert kept.grad_fn is not None  # the original is as it was
