"""`compare.Jax` with a state: what a pure function hands on from step to step."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import nn

import compare
from compare.report.report import Report


class Original(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.bn, self.second = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.bn(self.first(x))))


def dense(weights: Any, x: Any) -> Any:
    return x @ weights["w"] + weights["b"]


PARAMS = {
    "first": {"w": jnp.zeros((3, 4)), "b": jnp.zeros(4)},
    "bn": {"scale": jnp.zeros(4), "bias": jnp.zeros(4)},
    "second": {"w": jnp.zeros((4, 2)), "b": jnp.zeros(2)},
}
STATE = {
    "bn": {"mean": jnp.ones(4), "var": jnp.zeros(4)},
    "key": jax.random.key(0),
    "calls": jnp.array(0),
    "name": None,
}


def network(unbiased: bool = True, hands_on: bool = True) -> Callable[..., Any]:
    def apply(params: Any, state: Any, x: Any) -> Any:
        x = dense(params["first"], x)
        mean, var, count = x.mean(0), x.var(0), len(x)
        x = (x - mean) / jnp.sqrt(var + 1e-5) * params["bn"]["scale"] + params["bn"]["bias"]
        kept = var * count / (count - 1) if unbiased else var
        new = {
            "mean": 0.9 * state["bn"]["mean"] + 0.1 * mean,
            "var": 0.9 * state["bn"]["var"] + 0.1 * kept,
        }
        state = {**state, "key": jax.random.split(state["key"])[0], "calls": state["calls"] + 1}
        return dense(params["second"], jax.nn.relu(x)), {**state, "bn": new if hands_on else state["bn"]}

    return apply


def checked(
    apply: Callable[..., Any], params: Any = PARAMS, state: Any = STATE, model: Any = None, **options: Any
) -> Report:
    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal((6, 3)), rng.standard_normal((6, 2))) for _ in range(2)]
    original = compare.Torch(model or Original(), nn.MSELoss(), lambda params: torch.optim.SGD(params, 0.1))
    port = compare.Jax(apply, params, lambda y, target: jnp.mean((y - target) ** 2), optax.sgd(0.1), state=state)
    return compare.check(original, port, batches, **options)


def test_a_state_is_matched_started_and_compared() -> None:
    report = checked(network())
    assert report.verdict == "match"
    assert {("bn.running_mean", "bn/mean"), ("bn.running_var", "bn/var")} <= set(report.weights)
    assert ("jax", "calls") in {(each.side, each.name) for each in report.not_compared}


@pytest.mark.parametrize(
    ("apply", "name"),
    [(network(unbiased=False), "bn.running_var"), (network(hands_on=False), "bn.running_mean")],
)
def test_a_wrong_state_is_a_mismatch(apply: Callable[..., Any], name: str) -> None:
    divergence = checked(apply).divergence
    assert divergence is not None
    assert (divergence.step, divergence.stage, divergence.torch) == (0, "buffers", name)


def test_running_statistics_without_a_place_are_refused_with_what_to_do() -> None:
    with pytest.raises(compare.InputError, match=r"bn.running_mean \(4,\).*(?s:.*)compare.Jax\(apply, params, state="):
        checked(lambda params, x: network()(params, STATE, x)[0], state=None)


def test_running_statistics_that_are_left_out_may_not_change() -> None:
    """The outputs are the same in training, and would not be in evaluation."""
    left_out = {"bn.running_mean": None, "bn.running_var": None}
    divergence = checked(lambda params, x: network()(params, STATE, x)[0], state=None, weights=left_out).divergence
    assert divergence is not None
    assert (divergence.stage, divergence.torch) == ("buffers", "bn.running_mean")


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (lambda params, state, x: network()(params, state, x)[0], r"a pair \(output, new state\), but returned a"),
        (lambda params, state, x: (network()(params, state, x)[0], state["bn"]), "a new state with the same structure"),
    ],
)
def test_what_gives_no_state_is_refused(apply: Callable[..., Any], message: str) -> None:
    with pytest.raises(compare.InputError, match=message):
        checked(apply)


class Port(eqx.Module):
    first: eqx.nn.Linear
    bn: eqx.nn.BatchNorm
    second: eqx.nn.Linear

    def __init__(self, mode: Any) -> None:
        a, b = jax.random.split(jax.random.key(0))
        self.first, self.second = eqx.nn.Linear(3, 4, key=a), eqx.nn.Linear(4, 2, key=b)
        self.bn = eqx.nn.BatchNorm(4, axis_name="batch", mode=mode, momentum=0.9)

    def __call__(self, x: Any, state: Any) -> Any:
        x, state = self.bn(self.first(x), state)
        return self.second(jax.nn.relu(x)), state


def equinox_apply(model: Any, state: Any, x: Any) -> Any:
    return jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)


@pytest.mark.slow
def test_equinox_batch_norm() -> None:
    """In mode "batch" it keeps a biased variance; in mode "ema" it normalises by the running statistics."""
    report = checked(equinox_apply, *eqx.nn.make_with_state(Port)("batch"))
    assert ("bn.running_mean", "bn/mean") in report.weights
    assert report.divergence is not None
    assert (report.divergence.step, report.divergence.stage, report.divergence.torch) == (
        0,
        "buffers",
        "bn.running_var",
    )
    divergence = checked(equinox_apply, *eqx.nn.make_with_state(Port)("ema")).divergence
    assert divergence is not None
    assert divergence.stage in ("forward", "buffers")
    with pytest.raises(compare.InputError, match=r"as Jax\(state=\.\.\.\)"):
        checked(lambda pair, x: equinox_apply(pair[0], pair[1], x)[0], eqx.nn.make_with_state(Port)("batch"), None)
    with pytest.raises(compare.InputError, match=r"that eqx\.nn\.make_with_state made together"):
        checked(equinox_apply, PARAMS, eqx.nn.make_with_state(Port)("batch")[1])


def test_equinox_in_inference_has_torchs_statistics() -> None:
    original = Original().eval()
    with torch.no_grad():
        original.bn.running_mean.copy_(torch.arange(4.0))  # type: ignore[union-attr]
    model, state = eqx.nn.make_with_state(Port)("batch")
    assert checked(equinox_apply, eqx.nn.inference_mode(model), state, original).verdict == "match"
