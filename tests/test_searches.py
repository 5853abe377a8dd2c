"""What makes searches and checks faster gives what the slower way gave."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import compare
from compare.diagnosis.structure import pairs, search
from compare.diagnosis.structure.budget import Budget
from compare.diagnosis.structure.edit import Edit
from compare.diagnosis.structure.step import Step
from compare.jax_side import compiling
from compare.verdict.neighbours import ONSET, WINDOW, near


class Original(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.first(x).chunk(2, -1)
        return self.last(torch.cat([torch.tanh(left), torch.sigmoid(right)], -1))


class Port(nnx.Module):
    def __init__(self, *, wrong: bool) -> None:
        self.wrong, rngs = wrong, nnx.Rngs(0)
        self.first, self.last = nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        left, right = jnp.split(self.first(x), 2, -1)
        if self.wrong:  # one fault in each branch
            return self.last(jnp.concatenate([jnp.tanh(left[::-1]), nnx.sigmoid(-right)], -1))
        return self.last(jnp.concatenate([jnp.tanh(left), nnx.sigmoid(right)], -1))


def check(*, wrong: bool) -> compare.Report:
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(5, 4)), rng.normal(size=(5, 2))) for _ in range(2)]
    return compare.check(
        compare.Torch(Original(), torch.nn.MSELoss(), lambda p: torch.optim.SGD(p, 0.1)),
        compare.Flax(Port(wrong=wrong), lambda y, target: jnp.mean((y - target) ** 2), optax.sgd(0.1)),
        batches,
        device="cpu",
    )


def test_an_edit_that_is_made_once_gives_what_both_give_together(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[tuple[Step, Sequence[pairs.Tried]]] = []

    def kept(here: Step, tried: Sequence[pairs.Tried], budget: Budget) -> Iterator[Iterator[list[Edit]]]:
        searched.append((here, tried))
        return pairs.fitting_pairs(here, tried, budget)

    monkeypatch.setattr(search, "fitting_pairs", kept)
    cause = check(wrong=True).divergence.cause  # type: ignore[union-attr]
    assert cause is not None
    assert len(cause.parts) == 1  # of several edits
    assert "reversal of axis 0" in cause.explanation
    assert "change of sign" in cause.explanation

    here, tried = searched[0]
    edits = [each.edit for each in tried][:: max(1, len(tried) // 40)]
    compared = 0
    for first, second in itertools.permutations(edits, 2):
        having = here.having(first)
        if having is not None and {at for at, _ in first.at}.isdisjoint(at for at, _ in second.at):
            assert having.leaves([second]) == here.leaves([first, second])
            compared += np.isfinite(here.leaves([first, second]))
    assert compared > 100
    assert check(wrong=False).verdict == "match"


def test_the_largest_of_the_neighbours_is_that_of_each_window() -> None:
    rng = np.random.default_rng(0)
    for steps in range(1, 40):
        errors = 10.0 ** rng.uniform(-16, -3, steps)
        for step, largest in enumerate(near(errors)):
            around = errors[max(0, step - WINDOW) : step + WINDOW + 1].max()
            before = errors[max(0, step - WINDOW) : step + 1].max()
            assert largest == min(around, ONSET * max(before, 2.0**-52))


def test_an_option_that_xla_does_not_have_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_LITTLE", {"xla_backend_optimization_level": 0, "xla_of_another_version": 1})
    compiling._options.cache_clear()
    assert compiling._options("cpu") == {"xla_backend_optimization_level": 0}
    compiling._options.cache_clear()
    assert compiling._options("cuda") is None
    assert float(compiling.compiled_quickly(lambda x: 2 * x)(3.0)) == 6.0
