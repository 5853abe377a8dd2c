"""What XLA makes of a whole step may differ from what its operations give one by one: the report says so."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import compare

ONE_BY_ONE = [False]
"""Whether operations run one by one."""


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a port see whether it is compiled."""
    disable_jit = jax.disable_jit

    @contextlib.contextmanager
    def noted(disable: bool = True) -> Iterator[None]:
        before, ONE_BY_ONE[0] = ONE_BY_ONE[0], ONE_BY_ONE[0] or disable
        with disable_jit(disable):
            yield
        ONE_BY_ONE[0] = before

    monkeypatch.setattr(jax, "disable_jit", noted)


class Port(nnx.Module):
    """Its float32 gradient is another one where the step is compiled; with `always`, wherever it runs."""

    def __init__(self, always: bool) -> None:
        self.always, rngs = always, nnx.Rngs(0)
        self.first, self.last = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.tanh(self.first(x))
        other = x.dtype == jnp.float32 and (self.always or not ONE_BY_ONE[0])
        return self.last(x + 0.3 * (x - jax.lax.stop_gradient(x)) if other else x)


def checked(port: nnx.Module) -> compare.Report:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = torch.nn.Sequential()
    model.add_module("first", torch.nn.Linear(6, 8))
    model.add_module("tanh", torch.nn.Tanh())
    model.add_module("last", torch.nn.Linear(8, 3))
    return compare.check(
        compare.Torch(model, torch.nn.MSELoss()),
        compare.Flax(port, lambda output, target: jnp.mean((output - target) ** 2)),
        [(rng.standard_normal((5, 6)), rng.standard_normal((5, 3))) for _ in range(2)],
        device="cpu",
    )


@pytest.mark.parametrize(("always", "cause"), [(False, "compilation"), (True, None)])
@pytest.mark.usefixtures("seen")
def test_compilation_is_a_cause_only_where_it_makes_the_difference(always: bool, cause: str | None) -> None:
    report = checked(Port(always))
    assert report.verdict == "mismatch"
    assert report.divergence is not None
    assert report.divergence.stage == "gradient"
    assert (report.divergence.cause and report.divergence.cause.name) == cause
    assert not report.divergence.cause or not report.divergence.cause.fix  # it has no maximum


@pytest.mark.parametrize("counted", [True, False])
def test_labels_that_torch_ignores_may_be_counted_as_class_0(counted: bool) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (2, 12))
    labels[:, ::4] = -100

    def loss(logits: Any, labels: Any) -> Any:
        kept = jnp.ones(labels.shape) if counted else jnp.where(labels == -100, 0.0, 1.0)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
        return jnp.sum(kept * each) / jnp.sum(kept)

    report = compare.check(
        compare.Torch(torch.nn.Linear(6, 4), torch.nn.CrossEntropyLoss()),
        compare.Flax(nnx.Linear(6, 4, rngs=nnx.Rngs(0)), loss),
        [(rng.standard_normal((12, 6)), row) for row in labels],
        device="cpu",
    )
    assert report.ok != counted
    if report.divergence is not None:
        assert report.divergence.cause is not None
        assert report.divergence.cause.name == "ignored labels"
        assert "jnp.where(labels == -100, 0, labels)" in report.divergence.cause.fix
