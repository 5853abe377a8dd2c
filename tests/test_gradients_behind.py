"""A fault of the gradients is listed in a model that has other faults before it, whose causes are known."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from programs.common import BatchNorm
from torch import nn

import compare
from compare.verdict.divergence import SEARCH_ENDED

WIDTH = 8
Function = Callable[[jax.Array], jax.Array]


def mse(output: Any, target: Any) -> Any:
    return ((output - target) ** 2).mean()


def total(output: Any, target: Any) -> Any:
    return ((output - target) ** 2).sum()


def half(output: Any, target: Any) -> Any:
    return 0.5 * mse(output, target)


def same(x: jax.Array) -> jax.Array:
    return x


def odd(x: jax.Array) -> jax.Array:
    """Change an activation in a way of which no cause of the catalogue tells."""
    return jax.nn.gelu(x, approximate=False) + 0.1 * jnp.sin(3.1 * x) * x


@jax.custom_vjp
def straight_through(x: jax.Array) -> jax.Array:
    return jnp.tanh(x)


straight_through.defvjp(lambda x: (jnp.tanh(x), None), lambda _, gradient: (gradient,))


class Original(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.gate = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norm, self.end = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.gelu(self.first(x))
        y = self.norm(x + torch.tanh(self.second(x)) * 0.5)
        out: torch.Tensor = self.end(y * torch.sigmoid(self.gate(y)))
        return out


class Port(nnx.Module):
    def __init__(
        self,
        *,
        approximate: bool = False,
        epsilon: float = 1e-5,
        scale: float = 0.5,
        tanh: Function = jnp.tanh,
        before_second: Function = same,
        before_gate: Function = same,
        activation: Function | None = None,
    ) -> None:
        def linear(outputs: int) -> nnx.Linear:
            return nnx.Linear(WIDTH, outputs, rngs=nnx.Rngs(0))

        self.first, self.second, self.gate, self.end = linear(WIDTH), linear(WIDTH), linear(WIDTH), linear(3)
        self.norm = nnx.LayerNorm(WIDTH, epsilon=epsilon, rngs=nnx.Rngs(0))
        self.approximate, self.scale, self.tanh, self.activation = approximate, scale, tanh, activation
        self.before_second, self.before_gate = before_second, before_gate

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.first(x)
        x = self.activation(x) if self.activation else nnx.gelu(x, approximate=self.approximate)
        y = self.norm(x + self.tanh(self.second(self.before_second(x))) * self.scale)
        return self.end(y * jax.nn.sigmoid(self.gate(self.before_gate(y))))


def checked(
    port: nnx.Module, loss: Callable[[Any, Any], Any] = mse, original: Callable[[], nn.Module] = Original
) -> compare.Report:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    batches = [tuple(rng.normal(size=(6, width)).astype(np.float32) for width in (WIDTH, 3)) for _ in range(2)]
    ours = compare.Torch(original(), mse, lambda parameters: torch.optim.Adam(parameters, 1e-2))
    return compare.check(ours, compare.Flax(port, loss, optax.adam(1e-2)), batches, steps=3)


def findings(report: compare.Report) -> list[tuple[str, str | None]]:
    assert report.divergence is not None
    return [(each.stage, each.cause.name if each.cause else None) for each in (report.divergence, *report.others)]


def ended(report: compare.Report) -> bool:
    assert report.divergence is not None
    return any(SEARCH_ENDED in each.details for each in (report.divergence, *report.others))


stop = jax.lax.stop_gradient
STOPPED = ("gradient", "stopped gradient")
BEHIND: dict[str, tuple[dict[str, Any], Any, list[tuple[str, str | None]]]] = {
    "an activation": ({"approximate": True, "before_gate": stop}, mse, [("forward", "activation"), STOPPED]),
    "a constant": ({"scale": 0.75, "before_second": stop}, mse, [("forward", "constant"), STOPPED]),
    "a setting": ({"epsilon": 1e-3, "before_second": stop}, mse, [("forward", "epsilon"), STOPPED]),
    "the loss": ({"before_gate": stop}, total, [("loss", "mean or sum"), STOPPED]),
    "a factor of the loss": ({"before_gate": stop}, half, [("loss", "factor"), STOPPED]),
    "several": (
        {"approximate": True, "scale": 0.75, "epsilon": 1e-3, "before_gate": stop},
        mse,
        [("forward", "activation"), ("forward", "constant"), ("forward", "epsilon"), STOPPED],
    ),
    "a rule of its own": (
        {"approximate": True, "tanh": straight_through},
        mse,
        [("forward", "activation"), ("gradient", None)],
    ),
}


@pytest.mark.parametrize("name", BEHIND)
def test_a_fault_of_the_gradients_is_listed_behind_others(name: str) -> None:
    settings, loss, expected = BEHIND[name]
    report = checked(Port(**settings), loss)
    assert findings(report) == expected
    # A gradient without a cause leaves those of other parameters open.
    assert ended(report) == (expected[-1][1] is None)


@pytest.mark.parametrize(
    "settings", [{"approximate": True}, {"scale": 0.75}, {"approximate": True, "epsilon": 1e-3}], ids=str
)
def test_gradients_that_differ_with_the_forward_pass_alone_are_not_listed(settings: dict[str, Any]) -> None:
    report = checked(Port(**settings))
    assert {stage for stage, _ in findings(report)} == {"forward"}
    assert not ended(report)


def test_two_stops_are_found_one_after_the_other() -> None:
    report = checked(Port(before_second=stop, before_gate=stop))
    assert report.divergence is not None
    assert findings(report) == [STOPPED]
    cause = report.divergence.cause
    assert cause is not None
    assert "the output of norm as an operand of linear" in cause.fix
    assert "the input of second as an operand of linear" in cause.fix


class StraightThrough(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.end = nn.Linear(WIDTH, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        out: torch.Tensor = self.end(y + (torch.round(y) - y).detach())
        return out


class StraightThroughPort(nnx.Module):
    def __init__(self, rounded: Function) -> None:
        self.first, self.end = (nnx.Linear(*sizes, rngs=nnx.Rngs(0)) for sizes in ((WIDTH, 4), (4, 3)))
        self.rounded = rounded

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.end(self.rounded(self.first(x)))


@pytest.mark.parametrize(
    "rounded", [lambda y: y + (jnp.round(y) - y), lambda y: stop(y) + stop(jnp.round(y) - y)], ids=["lacking", "added"]
)
def test_a_stop_that_is_lacking_may_be_another_one_that_is_added(rounded: Function) -> None:
    """Either way no gradient is left: without torch's detach, y and -y cancel."""
    report = checked(StraightThroughPort(rounded), original=StraightThrough)
    assert report.divergence is not None
    assert findings(report) == [STOPPED]
    cause = report.divergence.cause
    assert cause is not None
    assert "lets the gradient through the output of sub" in cause.explanation
    assert "or it stops the gradient of the output of first" in cause.explanation


def test_gradients_behind_a_difference_without_a_cause_are_not_looked_at() -> None:
    report = checked(Port(activation=odd, before_gate=stop))
    assert findings(report) == [("forward", None)]
    assert ended(report)


class Normalized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.end = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.norm, self.dropout = nn.BatchNorm1d(WIDTH), nn.Dropout(0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = x + self.dropout(nn.functional.silu(self.second(x)))
        out: torch.Tensor = self.end(self.norm(x))
        return out


class NormalizedPort(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.first, self.second = nnx.Linear(WIDTH, WIDTH, rngs=rngs), nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.end, self.norm = nnx.Linear(WIDTH, 3, rngs=rngs), BatchNorm(WIDTH)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.first(x)
        x = x + self.dropout(nnx.silu(self.second(stop(x))))
        return self.end(self.norm(x))


def test_a_stop_is_found_in_a_model_that_keeps_statistics() -> None:
    """The first step of each run notes what the model keeps, which is no operation of the user's."""
    report = checked(NormalizedPort(), original=Normalized)
    assert findings(report) == [STOPPED]
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert "the output of first as an operand of linear" in report.divergence.cause.fix
    assert ";" not in report.divergence.cause.fix


class TwoTerms(nn.Module):
    """Two terms of one value, of which each trains its own side, as in a quantized autoencoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.codes = nn.Linear(WIDTH, 4), nn.Embedding(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z, e = self.encoder(x), self.codes(torch.arange(6))
        return ((e - z.detach()) ** 2).mean() + 0.25 * ((e.detach() - z) ** 2).mean()


class TwoTermsPort(nnx.Module):
    def __init__(self) -> None:
        self.encoder = nnx.Linear(WIDTH, 4, rngs=nnx.Rngs(0))
        self.codes = nnx.Embed(6, 4, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        z, e = self.encoder(x), self.codes(jnp.arange(6))
        return ((e - stop(z)) ** 2).mean() + 0.5 * ((stop(e) - z) ** 2).mean()


def test_the_weight_of_one_of_two_equal_terms_is_no_factor_of_their_sum() -> None:
    ours, port = compare.Torch(TwoTerms(), lambda output, _: output), TwoTermsPort()
    batches: list[Any] = [(np.random.default_rng(0).normal(size=(6, WIDTH)), None)]
    report = compare.check(ours, compare.Flax(port, lambda output, _: output), batches, device="cpu")
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert report.divergence.cause.name == "another scale"
    assert "0.5" in report.divergence.cause.explanation
    assert not report.others
