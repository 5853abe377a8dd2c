"""An optimizer that a Linen script makes for all variables, {"params": ...}."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen

import compare


def checked(decay: float, momentum: float) -> compare.Report:
    module = linen.Dense(3)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 4)))
    labels = jax.tree.map(lambda leaf: "matrix" if leaf.ndim == 2 else "vector", variables)
    optimizer = optax.multi_transform(
        {
            "matrix": optax.chain(optax.add_decayed_weights(decay), optax.sgd(0.1, momentum=momentum)),
            "vector": optax.sgd(0.1),
        },
        labels,
    )
    optimizer.init(variables)  # as the script does

    def grouped(params: Any) -> torch.optim.Optimizer:
        weight, bias = params
        groups: list[dict[str, Any]] = [{"params": [weight], "weight_decay": 0.2, "momentum": 0.9}, {"params": [bias]}]
        return torch.optim.SGD(groups, 0.1)

    rng = np.random.default_rng(0)
    return compare.check(
        compare.Torch(torch.nn.Linear(4, 3), torch.nn.MSELoss(), grouped),
        compare.Flax((module, variables), lambda y, target: jnp.mean((y - target) ** 2), optimizer),
        [(rng.standard_normal((5, 4)), rng.standard_normal((5, 3))) for _ in range(2)],
    )


def test_it_is_compared_with_its_state() -> None:
    report = checked(0.2, 0.9)
    assert report.verdict == "match"
    assert "weight.momentum_buffer" in {quantity.torch for quantity in report.quantities}


@pytest.mark.parametrize(("decay", "momentum"), [(0.1, 0.9), (0.2, 0.8)])
def test_a_wrong_setting_is_a_mismatch(decay: float, momentum: float) -> None:
    report = checked(decay, momentum)
    assert report.divergence is not None
    assert (report.divergence.stage, report.verdict) == ("update", "mismatch")
