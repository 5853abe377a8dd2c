"""What is wrong in a loop of the user's is one thing to mend; two factors in a row; levels that rounding decides."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import compare

TURNS = 3


class Cell(torch.nn.Module):
    """A recurrent cell whose state is kept between the calls of its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.head = torch.nn.Linear(7, 8), torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = shown = x.new_zeros(len(x), 4)
        for turn in range(TURNS):
            new, gate = self.gates(torch.cat([x[:, turn], shown], 1)).chunk(2, 1)
            kept = torch.sigmoid(gate + 1.0) * kept + torch.tanh(new)
            shown = torch.tanh(kept)
        return self.head(shown)


class Port(nnx.Module):
    def __init__(self, fault: str) -> None:
        rngs = nnx.Rngs(0)
        self.gates, self.head, self.fault = nnx.Linear(7, 8, rngs=rngs), nnx.Linear(4, 2, rngs=rngs), fault

    def __call__(self, x: Any) -> Any:
        kept = shown = jnp.zeros((len(x), 4), x.dtype)
        for turn in range(TURNS):
            new, gate = jnp.split(self.gates(jnp.concatenate([x[:, turn], shown], 1)), 2, 1)
            if self.fault == "order":
                new, gate = gate, new
            bias = 0.0 if self.fault == "bias" else 1.0
            kept = nnx.sigmoid(gate + bias) * kept + jnp.tanh(new)
            shown = kept if self.fault == "activation" else jnp.tanh(kept)
        return self.head(shown)


@pytest.mark.parametrize(
    ("fault", "says"), [("order", "chunk"), ("bias", "add by 1"), ("activation", "identity"), ("", "")]
)
def test_what_is_wrong_in_each_turn_is_one_finding(fault: str, says: str) -> None:
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(6, TURNS, 3)), rng.normal(size=(6, 2))) for _ in range(2)]
    sides = (
        compare.Torch(Cell(), torch.nn.functional.mse_loss),
        compare.Flax(Port(fault), lambda y, t: ((y - t) ** 2).mean()),
    )
    report = compare.check(*sides, batches, quick=True)
    if not fault:
        assert report.ok
        return
    assert report.divergence is not None
    assert report.divergence.cause is not None, str(report)
    assert says in report.divergence.cause.explanation
    assert not report.others, str(report)


class Gru(torch.nn.Module):
    """A GRU written out: its state starts from zeros, of which any factor is right."""

    def __init__(self) -> None:
        super().__init__()
        self.new, self.old, self.head = torch.nn.Linear(3, 12), torch.nn.Linear(4, 12), torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.new_zeros(len(x), 4)
        for turn in range(TURNS):
            a, b, c = self.new(x[:, turn]).chunk(3, 1)
            d, e, f = self.old(h).chunk(3, 1)
            reset, update = torch.sigmoid(a + d), torch.sigmoid(b + e)
            h = (1 - update) * torch.tanh(c + reset * f) + update * h
        return self.head(h)


class GruPort(nnx.Module):
    def __init__(self, fault: str) -> None:
        rngs = nnx.Rngs(0)
        self.new, self.old = nnx.Linear(3, 12, rngs=rngs), nnx.Linear(4, 12, rngs=rngs)
        self.head, self.fault = nnx.Linear(4, 2, rngs=rngs), fault

    def __call__(self, x: Any) -> Any:
        h = jnp.zeros((len(x), 4), x.dtype)
        for turn in range(TURNS):
            a, b, c = jnp.split(self.new(x[:, turn]), 3, 1)
            d, e, f = jnp.split(self.old(h), 3, 1)
            if self.fault == "gates":
                a, b, d, e = b, a, e, d
            reset, update = nnx.sigmoid(a + d), nnx.sigmoid(b + e)
            candidate = jnp.tanh(c + reset * f)
            if self.fault == "complement":
                h = update * candidate + (1 - update) * h
            elif self.fault == "gate":
                h = (1 - update) * candidate + reset * h
            else:
                h = (1 - update) * candidate + update * h
        return self.head(h)


@pytest.mark.parametrize(
    ("fault", "cause", "says"),
    [
        ("gates", "parts in another order", "in the order (1, 0, 2)"),
        ("complement", "another operand", "between the two products"),
        ("gate", "another operand", "3rd call for the product"),
    ],
)
def test_of_what_explains_a_first_turn_the_cause_explains_the_later_ones_too(
    fault: str, cause: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "compare.comparison.common_check.LEAST", 120.0
    )  # seconds: other programs may run beside this one
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(6, TURNS, 3)), rng.normal(size=(6, 2))) for _ in range(2)]
    report = compare.check(
        compare.Torch(Gru(), torch.nn.functional.mse_loss),
        compare.Flax(GruPort(fault), lambda y, t: ((y - t) ** 2).mean()),
        batches,
        quick=True,
    )
    assert report.divergence is not None
    assert report.divergence.cause is not None, str(report)
    assert report.divergence.cause.name == cause
    assert says in report.divergence.cause.explanation
    assert not report.others, str(report)


class Refined(torch.nn.Module):
    """A state that each turn makes a new one of, from zeros or from what the input gives."""

    def __init__(self, start: str) -> None:
        super().__init__()
        self.first, self.again, self.start = torch.nn.Linear(3, 4), torch.nn.Linear(4, 4), start

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given = self.first(x)
        state = torch.tanh(given) if self.start == "input" else torch.zeros_like(given)
        for _ in range(TURNS):
            state = 0.5 * state + 0.5 * torch.tanh(given + self.again(state))
        return state


class RefinedPort(nnx.Module):
    def __init__(self, start: str, fault: str) -> None:
        rngs = nnx.Rngs(0)
        self.first, self.again = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)
        self.start, self.fault = start, fault

    def __call__(self, x: Any) -> Any:
        given = self.first(x)
        state = jnp.tanh(given) if self.start == "input" else jnp.zeros_like(given)
        kept = 0.25 if self.fault == "damped" else 0.5
        for _ in range(TURNS):
            new = jnp.tanh((state if self.fault == "state" else given) + self.again(state))
            state = kept * state + (1 - kept) * new
        return state


def refined(start: str, fault: str) -> compare.Report:
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(6, 3)), rng.normal(size=(6, 4))) for _ in range(2)]
    return compare.check(
        compare.Torch(Refined(start), torch.nn.functional.mse_loss),
        compare.Flax(RefinedPort(start, fault), lambda y, t: ((y - t) ** 2).mean()),
        batches,
        quick=True,
    )


def test_a_factor_of_a_first_state_is_no_cause_if_later_ones_have_none() -> None:
    report = refined("zeros", "damped")
    assert report.divergence is not None
    causes = [each.cause.name for each in (report.divergence, *report.others) if each.cause]
    assert not [name for name in causes if "factor" in name], str(report)


def test_what_a_module_takes_in_each_turn_is_the_operand_in_each() -> None:
    report = refined("input", "state")
    assert report.divergence is not None
    assert report.divergence.cause is not None, str(report)
    assert "takes the input of again for the sum" in report.divergence.cause.explanation
    assert "or applies" not in report.divergence.cause.explanation
    assert not report.others, str(report)


class Normed(torch.nn.Module):
    """A state that two norms take, and that goes on beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.other = torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = self.first(x)
        wider = 2.0 * state
        return self.one(state) + self.other(wider) + wider * state


class NormedPort(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.one, self.other = (nnx.LayerNorm(4, epsilon=1e-5, rngs=rngs) for _ in range(2))

    def __call__(self, x: Any) -> Any:
        state = self.first(x)
        wider = 2.0 * state
        return self.one(jnp.tanh(state)) + self.other(jnp.tanh(wider)) + wider * state


def test_the_same_change_before_two_modules_is_two_findings() -> None:
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(6, 3)), rng.normal(size=(6, 4))) for _ in range(2)]
    report = compare.check(
        compare.Torch(Normed(), torch.nn.functional.mse_loss),
        compare.Flax(NormedPort(), lambda y, t: ((y - t) ** 2).mean()),
        batches,
        quick=True,
    )
    assert report.divergence is not None
    places = {each.torch for each in (report.divergence, *report.others)}
    assert len(places) == 2, str(report)


def test_two_factors_that_are_left_out_are_no_inverse_of_one() -> None:
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(6, 3)), rng.normal(size=(6, 2))) for _ in range(2)]
    sides = (
        compare.Torch(torch.nn.Linear(3, 2), lambda y, t: (y - t).square().sum(1).mean() * 4 * 4),
        compare.Flax(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), lambda y, t: ((y - t) ** 2).sum(1).mean()),
    )
    report = compare.check(*sides, batches, quick=True)
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert "0.25" not in str(report)


class Levels(torch.nn.Module):
    """Rounds its weights to levels, of which the largest weights are halfway between two."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(3, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = self.weight.detach().abs().amax(1, keepdim=True) / 7.5
        rounded = torch.round(self.weight / size) * size
        return x @ (self.weight + (rounded - self.weight).detach()).T


def test_a_match_says_where_rounding_alone_moves_an_output() -> None:
    torch.manual_seed(0)

    class Other(nnx.Module):
        def __init__(self) -> None:
            self.weight = nnx.Param(jnp.zeros((3, 4)))

        def __call__(self, x: Any) -> Any:
            weight = self.weight[...]
            fixed = jax.lax.stop_gradient(weight)
            size = jnp.abs(fixed).max(1, keepdims=True) / 7.5
            return x @ (weight + jax.lax.stop_gradient(jnp.round(weight / size) * size - weight)).T

    batches = [(np.random.default_rng(seed).normal(size=(6, 4)), None) for seed in range(3)]
    report = compare.check(compare.Torch(Levels()), compare.Flax(Other()), batches)
    assert report.verdict != compare.Verdict.MISMATCH, str(report)
    assert any("rounding alone moves" in limit for limit in report.limits), str(report)
