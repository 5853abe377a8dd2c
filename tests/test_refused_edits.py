"""An edit of torch's operations that torch refuses, at whatever operation, is a candidate that does not fit."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import compare
from compare.diagnosis.counterfactuals import FUNCTIONS
from compare.diagnosis.rewriting import Rerun, Window
from compare.diagnosis.structure.editing import edited
from compare.diagnosis.structure.graph import Graph, Operation
from compare.diagnosis.structure.recording import recorded
from compare.errors import InternalError, NotApplicable
from compare.step.batch import Batch
from compare.torch_side.run import TorchRun

BATCH = Batch(np.random.default_rng(2).normal(size=(4, 4)), np.zeros(4, np.int64))


class Viewed(torch.nn.Module):
    """A view takes only what is contiguous; cross_entropy, which is written out as several operations, two axes."""

    def __init__(self) -> None:
        super().__init__()
        self.only = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(torch.cos(self.only(x)).view(16).view(4, 4))


def rerun_of(loss: Any) -> Rerun:
    side = compare.Torch(Viewed(), loss, lambda params: torch.optim.SGD(params, 0.1))
    return Rerun(TorchRun(side, "float64", "cpu").without_update(), BATCH, (), Window(), FUNCTIONS)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("cos", lambda operation: operation.run().mT),
        ("sin", lambda operation: operation.run()[0]),
        ("sin", lambda operation: operation.run()[:3]),
    ],
    ids=["a view", "written out", "in what is written out"],
)
def test_what_torch_refuses_later_is_not_applicable(name: str, change: Callable[[Operation], Any]) -> None:
    rerun = rerun_of(torch.nn.CrossEntropyLoss())
    graph = recorded(rerun).graph
    (number,) = (node.number for node in graph.nodes if node.name == name)
    with pytest.raises(NotApplicable):
        edited(rerun, {number: change}, graph)
    assert edited(rerun, {number: lambda operation: operation.run()}, graph).loss is not None


def test_without_an_edit_an_error_of_netparity_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rerun = rerun_of(torch.nn.MSELoss())

    def broken(*_: Any) -> Any:
        raise InternalError("an index is wrong")

    monkeypatch.setattr(rerun, "step", broken)
    with pytest.raises(InternalError, match="an index is wrong"):
        edited(rerun, {}, Graph())
