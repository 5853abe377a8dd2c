"""What new versions of JAX and PyTorch break first, and which versions are promised.

`make test-oldest` and `make test-newest` run this file, and a few others, at both ends of the range.
"""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from jax.sharding import AxisType, PartitionSpec
from torch import nn

import compare
from compare.jax_side.primitives import TESTED

ROOT = Path(__file__).parents[1]
RNG = np.random.default_rng(0)
BATCHES = [(RNG.normal(size=(4, 5)), RNG.normal(size=(4, 5))) for _ in range(2)]


def mse(output: Any, target: Any) -> Any:
    return jnp.mean((output - target) ** 2)


class Original(nn.Module):
    """Three residual layers, of which the last adds half, each with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + nn.functional.dropout(torch.tanh(layer(x)), 0.3, self.training)
        return x if x.sum() > 1e3 else x * 0.5


@nnx.split_rngs(splits=3)
@nnx.vmap
def stacked(rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(5, 5, rngs=rngs)


class Port(nnx.Module):
    """The same, its layers in a scan and its end in a conditional."""

    def __init__(self, scale: float) -> None:
        self.layers = stacked(nnx.Rngs(0))
        self.dropout = nnx.Dropout(0.3, rngs=nnx.Rngs(1))
        self.rngs = nnx.Rngs(2)
        self.scale = scale

    def __call__(self, x: Any) -> Any:
        graph, weights = nnx.split(self.layers)
        keys = jax.random.split(self.rngs.keys(), 3)

        def layer(x: Any, item: Any) -> Any:
            weights, key = item
            y = jnp.tanh(nnx.merge(graph, weights)(x))
            if not self.dropout.deterministic:
                y = y * jax.random.bernoulli(key, 0.7, y.shape) / 0.7
            return x + y, None

        x, _ = jax.lax.scan(layer, x, (weights, keys))
        return jax.lax.cond(x.sum() > 1e3, lambda x: x, lambda x: x * self.scale, x)


class Accumulating(torch.optim.SGD):
    """Steps at every second batch, with the mean of both gradients."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, 0.1)
        self.kept: dict[Any, torch.Tensor] = {}

    def step(self, closure: Any = None) -> Any:
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        first, self.kept = self.kept, {parameter: parameter.grad.clone() for parameter in parameters}
        if first:
            for parameter in parameters:
                parameter.grad = (first[parameter] + parameter.grad) / 2
            super().step()
            self.kept = {}


@pytest.mark.parametrize(("scale", "verdict"), [(0.5, "match"), (0.5001, "mismatch")])
def test_loops_branches_and_random_numbers(scale: float, verdict: str) -> None:
    torch.manual_seed(0)
    report = compare.check(
        compare.Torch(Original(), nn.functional.mse_loss, Accumulating),
        compare.Flax(Port(scale), mse, optax.MultiSteps(optax.sgd(0.1), 2)),
        BATCHES,
        steps=4,
    )
    assert report.verdict == verdict, str(report)


def over_devices(params: Any, x: Any) -> Any:
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    return jax.shard_map(
        lambda params, x: jnp.tanh(x @ params["weight"].T + params["bias"]),
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("data")),
        out_specs=PartitionSpec("data"),
    )(params, x)


def over_mapped_devices(params: Any, x: Any) -> Any:
    def part(params: Any, x: Any) -> Any:
        return jnp.tanh(x @ params["weight"].T + params["bias"])

    return jax.pmap(part, in_axes=(None, 0))(params, x[None])[0]


@pytest.mark.parametrize("apply", [over_devices, over_mapped_devices])
@pytest.mark.parametrize(("rate", "verdict"), [(1e-2, "match"), (1.001e-2, "mismatch")])
def test_programs_over_devices(apply: Callable[..., Any], rate: float, verdict: str) -> None:
    report = compare.check(
        compare.Torch(
            nn.Sequential(nn.Linear(5, 3), nn.Tanh()), nn.functional.mse_loss, lambda p: torch.optim.SGD(p, 1e-2)
        ),
        compare.Jax(apply, {"weight": jnp.zeros((3, 5)), "bias": jnp.zeros(3)}, mse, optax.sgd(rate)),
        [(x, y[:, :3]) for x, y in BATCHES],
        steps=2,
    )
    assert report.verdict == verdict, str(report)


# The versions that are promised are those that are tested


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return {name: version for name, _, version in (line.partition("==") for line in lines) if version}


def test_the_oldest_versions_are_those_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = dict(re.findall(r"^([\w-]+)>=([\d.]+)$", "\n".join(project["dependencies"]), re.MULTILINE))
    assert {name: version for name, version in pins("constraints-oldest.txt").items() if name in bounds} == bounds


def test_the_operations_of_jax_are_known_for_these_versions() -> None:
    oldest, newest = (pins(f"constraints-{end}.txt")["jax"] for end in ("oldest", "newest"))
    assert f"{oldest} to {newest}" == TESTED
