"""Traps in layers, functions and optimizers that the catalogue does not use: placed and explained by the same means."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from in_ci import some
from torch import nn, optim

import compare
from compare.diagnosis.counterfactuals import FUNCTIONS
from compare.diagnosis.signatures import rewritable
from compare.verdict.divergence import DetailKind

CATALOGUE = "".join(path.read_text() for path in (Path(__file__).parents[1] / "benchmarks" / "traps").glob("*.py"))


class Original(nn.Module):
    middle: Any

    def __init__(self, middle: Callable[..., Any]) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 8), middle, nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(self.middle(self.first(x)))
        return result


class Port(nnx.Module):
    def __init__(self, middle: Callable[..., Any]) -> None:
        rngs = nnx.Rngs(0)
        self.first, self.middle = nnx.Linear(6, 8, rngs=rngs), middle
        self.last = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.last(self.middle(self.first(x)))


def instance_norm(epsilon: float) -> Callable[[Any], Any]:
    def normalize(x: Any) -> Any:
        x = x.reshape(-1, 2, 4)
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + epsilon)
        return x.reshape(-1, 8)

    return normalize


def normalized(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.layer_norm(x, (8,))


def jax_normalized(x: Any) -> Any:
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)


def added_in_place(x: torch.Tensor) -> torch.Tensor:
    y = nn.functional.gelu(normalized(x))
    y += x
    return y


class Unseen(NamedTuple):
    word: str
    """What the catalogue must not contain."""
    torch: Callable[..., Any]
    jax: Callable[..., Any]
    cause: str
    fix: str


LAYERS = {
    "epsilon of InstanceNorm": Unseen(
        "InstanceNorm",
        lambda x: nn.functional.instance_norm(x.reshape(-1, 2, 4)).reshape(-1, 8),
        instance_norm(1e-6),
        "epsilon",
        r"rsqrt\(var \+ 1e-05\)",
    ),
    "alpha of celu": Unseen(
        "celu", lambda x: nn.functional.celu(x, 0.5), lambda x: jax.nn.celu(x, 1.0), "alpha", "alpha=0.5"
    ),
    "what a product takes": Unseen(
        "what a product takes",
        lambda x: x * torch.sigmoid(normalized(x)),
        lambda x: jax_normalized(x) * jax.nn.sigmoid(jax_normalized(x)),
        "another operand",
        "take the output of first",
    ),
    "what is added in place": Unseen(
        "added in place",
        added_in_place,
        lambda x: jax_normalized(x) + jax.nn.gelu(jax_normalized(x), approximate=False),
        "another operand",
        "take the output of first",
    ),
    "an input by keyword": Unseen(
        "celu(input",
        lambda x: torch.celu(input=x, alpha=0.5),
        lambda x: jax.nn.celu(x, 1.0),
        "alpha",
        "alpha=0.5",
    ),
    "hardswish or silu": Unseen(
        "hardswish", nn.functional.hardswish, jax.nn.silu, "activation", r"jax\.nn\.hard_swish\(x\)"
    ),
    "logsigmoid or softplus": Unseen(
        "logsigmoid", nn.functional.logsigmoid, jax.nn.softplus, "activation", r"jax\.nn\.log_sigmoid\(x\)"
    ),
}

LOSSES = {
    "delta of HuberLoss": Unseen(
        "HuberLoss",
        nn.HuberLoss(delta=0.5),
        lambda output, target: optax.huber_loss(output, target, delta=1.0).mean(),
        "delta",
        "delta=0.5",
    ),
    "reduction of HuberLoss": Unseen(
        "HuberLoss",
        nn.HuberLoss(),
        lambda output, target: optax.huber_loss(output, target).sum(),
        "reduction",
        r"jnp\.mean\(optax\.huber_loss",
    ),
}

OPTIMIZERS = {
    "rho of Adadelta": Unseen(
        "Adadelta",
        lambda params: optim.Adadelta(params, 1.0, rho=0.9),
        lambda: optax.adadelta(1.0, rho=0.95, eps=1e-6),
        "decay",
        r"optax\.adadelta\(\.\.\., rho=0\.9\)",
    ),
    "b2 of Adamax": Unseen(
        "Adamax",
        lambda params: optim.Adamax(params, 1e-2, betas=(0.9, 0.99)),
        lambda: optax.adamax(1e-2, b2=0.999),
        "second moment's decay",
        r"optax\.adamax\(\.\.\., b2=0\.99\)",
    ),
    "two settings of Adamax": Unseen(
        "Adamax",
        lambda params: optim.Adamax(params, 2e-2, betas=(0.8, 0.999)),
        lambda: optax.adamax(1e-2),
        "learning rate and first moment's decay",
        r"optax\.adamax\(learning_rate=0\.02, b1=0\.8\)",
    ),
}


def checked(
    middle: tuple[Callable[..., Any], Callable[..., Any]] = (torch.tanh, jnp.tanh),
    loss: tuple[Callable[..., Any], Callable[..., Any]] = (nn.functional.mse_loss, lambda o, t: jnp.mean((o - t) ** 2)),
    optimizer: tuple[Callable[..., Any], Callable[..., Any]] = (lambda p: optim.SGD(p, 0.1), lambda: optax.sgd(0.1)),
) -> compare.Report:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal((12, 6), np.float32), rng.standard_normal((12, 4), np.float32)) for _ in range(2)]
    return compare.check(
        compare.Torch(Original(middle[0]), loss[0], optimizer[0]),
        compare.Flax(Port(middle[1]), loss[1], optimizer[1]()),
        batches,
        device="cpu",
    )


def explained(report: compare.Report, trap: Unseen, stage: str, place: str) -> None:
    assert trap.word not in CATALOGUE
    divergence = report.divergence
    assert divergence is not None
    assert divergence.stage == stage
    assert re.fullmatch(place, divergence.torch)
    assert divergence.cause is not None, str(report)
    assert divergence.cause.name == trap.cause
    assert re.search(trap.fix, divergence.cause.fix), divergence.cause.fix


@pytest.mark.parametrize("name", some(LAYERS, list(LAYERS)[::2]))
def test_layers(name: str) -> None:
    trap = LAYERS[name]
    explained(checked(middle=(trap.torch, trap.jax)), trap, "forward", "between first and last")


@pytest.mark.parametrize("name", some(LOSSES, list(LOSSES)[::2]))
def test_losses(name: str) -> None:
    trap = LOSSES[name]
    explained(checked(loss=(trap.torch, trap.jax)), trap, "loss", "loss")


@pytest.mark.parametrize("name", some(OPTIMIZERS, list(OPTIMIZERS)[::2]))
def test_optimizers(name: str) -> None:
    trap = OPTIMIZERS[name]
    explained(checked(optimizer=(trap.torch, trap.jax)), trap, "update", ".*")


def test_the_tables_name_functions_as_torch_does() -> None:
    assert rewritable() >= FUNCTIONS


def test_without_a_trap() -> None:
    assert checked().verdict == compare.Verdict.MATCH


def test_what_no_table_knows_is_placed_and_no_cause_is_invented() -> None:
    report = checked(middle=(torch.asinh, lambda x: jnp.arctan(x) + 0.1 * jnp.sin(3 * x)))
    assert report.divergence is not None
    assert report.divergence.torch == "between first and last"
    assert report.divergence.cause is None
    assert any(detail.kind == DetailKind.VALUES for detail in report.divergence.details)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.relu(self.inner(self.norm(x)))


class NormalizedResidual(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.norm, self.inner = nnx.LayerNorm(8, epsilon=1e-5, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = self.norm(x)
        return x + jax.nn.relu(self.inner(x))


def test_a_residual_that_starts_behind_its_norm_is_explained_by_the_modules() -> None:
    divergence = checked(middle=(Residual(), NormalizedResidual())).divergence
    assert divergence is not None
    assert divergence.torch == "between middle.inner and the end of middle"
    assert divergence.cause is not None
    assert "takes the output of middle.norm for the sum" in divergence.cause.explanation
