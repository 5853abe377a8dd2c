"""A match that cannot be tried from other weights and on other batches says so, and whose fault that is."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import optax
import pytest
import torch
from flax import nnx
from programs.common import drawn, squares, trained, trained_in_torch

import compare
from compare.comparison import second_answers
from compare.comparison.second_answers import asked_elsewhere
from compare.errors import InputError
from compare.verdict.divergence import Cause

BATCHES = drawn(x=(5,), y=(3,))
PAIR: Any = SimpleNamespace(jax=SimpleNamespace(name="flax"))


def test_torch_may_refuse_other_batches() -> None:
    def loss_of(net: Any, batch: Any) -> torch.Tensor:
        if not any(np.allclose(batch["x"].numpy(), each["x"], rtol=1e-6) for each in BATCHES):
            raise ValueError("these inputs are not normalized")
        return ((net(batch["x"]) - batch["y"]) ** 2).mean()

    def original() -> Any:
        model = torch.nn.Linear(5, 3)
        return trained_in_torch(model, torch.optim.SGD(model.parameters(), 0.1), loss_of)

    def port() -> Any:
        return trained(nnx.Linear(5, 3, rngs=nnx.Rngs(0)), optax.sgd(0.1), squares)

    report = compare.check(compare.TorchProgram(original), compare.JaxProgram(port), BATCHES, steps=2, device="cpu")
    assert report.verdict == "match"
    assert "without the second question: torch takes no step from other weights and batches" in report.headline
    assert "these inputs are not normalized" in report.headline


@pytest.mark.parametrize("torch_takes", [True, False])
def test_where_the_port_fails_elsewhere_it_counts_whether_torch_does(
    torch_takes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(second_answers, "_pairs_elsewhere", lambda pair: iter([pair, pair]))
    monkeypatch.setattr(second_answers, "_torch_takes", lambda pair: torch_takes)

    def ask(_: Any) -> Any:
        raise InputError("the step failed\nin its second line")

    answer = asked_elsewhere(PAIR, ask)
    if not torch_takes:
        assert answer == (
            "without the second question: torch takes no step from other weights and batches: the step failed"
        )
        return
    assert isinstance(answer, Cause)
    assert answer.name == "the flax side fails from other weights and batches"
    assert answer.explanation.endswith("and the flax side does not: the step failed")


def test_an_error_of_the_second_question_leaves_the_match(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[str] = []
    monkeypatch.setattr("compare.bugs.report", lambda doing, _: reported.append(doing))
    monkeypatch.setattr(second_answers, "_pairs_elsewhere", lambda pair: iter([pair]))

    def ask(_: Any) -> Any:
        raise KeyError("eps")

    assert asked_elsewhere(PAIR, ask) == "without the second question, which failed"
    assert reported == ["the second question"]
