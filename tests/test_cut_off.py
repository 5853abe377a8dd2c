"""A convolution that is padded on one side and cut off later: benign beside another fault, and mended as it is used."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

import compare
from compare.comparison.shapes_by_layer import shapes_by_layer

KERNEL, WIDTH = 3, 6


class Original(nn.Module):
    """A causal convolution in front of a gate: its input is padded, or its output is cut off at the end."""

    def __init__(self, *, cut: bool) -> None:
        super().__init__()
        self.front, self.gate, self.out = nn.Linear(4, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)
        self.conv = nn.Conv1d(WIDTH, WIDTH, KERNEL, padding=KERNEL - 1 if cut else 0, groups=WIDTH)
        self.cut = cut

    def forward(self, x: torch.Tensor) -> Any:
        h = self.front(x).transpose(1, 2)
        y = self.conv(h)[:, :, : x.shape[1]] if self.cut else self.conv(functional.pad(h, (KERNEL - 1, 0)))
        y = functional.silu(y.transpose(1, 2))
        return self.out(y * torch.sigmoid(self.gate(y)))


class Port(nnx.Module):
    def __init__(self, padding: Any, *, wrong: bool, rngs: nnx.Rngs) -> None:
        self.front, self.gate = nnx.Linear(4, WIDTH, rngs=rngs), nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.out = nnx.Linear(WIDTH, 2, rngs=rngs)
        self.conv = nnx.Conv(WIDTH, WIDTH, (KERNEL,), padding=padding, feature_group_count=WIDTH, rngs=rngs)
        self.wrong = wrong

    def __call__(self, x: jax.Array) -> Any:
        y = nnx.silu(self.conv(self.front(x))[:, : x.shape[1]])
        gate = jax.nn.sigmoid(self.gate(y))
        return self.out(y * (jnp.tanh(gate) if self.wrong else gate))


def square(output: Any, target: Any) -> Any:
    return ((output - target) ** 2).mean()


def checked(padding: Any, *, cut: bool = True, wrong: bool = False) -> compare.Report:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal((5, 7, 4), np.float32), rng.standard_normal((5, 7, 2), np.float32))] * 2
    return compare.check(
        compare.Torch(Original(cut=cut), square, lambda parameters: torch.optim.SGD(parameters, 0.1)),
        compare.Flax(Port(padding, wrong=wrong, rngs=nnx.Rngs(0)), square, optax.sgd(0.1)),
        batches,
        steps=2,
        quick=True,
    )


BOTH_ENDS = ((KERNEL - 1, KERNEL - 1),)

RIGHT = pytest.mark.parametrize(("padding", "cut"), [("CAUSAL", True), (BOTH_ENDS, False), (BOTH_ENDS, True)])


@RIGHT
def test_what_is_cut_off_later_is_no_difference(padding: Any, cut: bool) -> None:
    assert checked(padding, cut=cut).verdict == "match"


@RIGHT
def test_what_is_cut_off_later_is_no_finding_beside_another(padding: Any, cut: bool) -> None:
    report = checked(padding, cut=cut, wrong=True)
    assert report.divergence is not None
    assert report.divergence.torch == "between gate and out"
    assert report.divergence.cause is not None
    assert not report.others


def test_a_wrong_padding_is_mended_as_far_as_torch_uses_the_output() -> None:
    divergence = checked("SAME").divergence
    assert divergence is not None
    assert divergence.torch == "conv"
    assert divergence.cause is not None
    assert divergence.cause.fix.startswith("nnx.Conv(..., padding=((2, 0),))")
    assert checked(((2, 0),)).verdict == "match"


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.table, self.out = nn.EmbeddingBag(9, 4, mode="mean"), nn.Embedding(9, 4), nn.Linear(8, 2)

    def forward(self, ids: torch.Tensor) -> Any:
        return self.out(torch.cat([self.bag(ids), self.table(ids[:, 0])], 1))


class PortOfBag(nnx.Module):
    def __init__(self, *, wrong: bool, rngs: nnx.Rngs) -> None:
        self.bag, self.table = nnx.Embed(9, 4, rngs=rngs), nnx.Embed(9, 4, rngs=rngs)
        self.out, self.wrong = nnx.Linear(8, 2, rngs=rngs), wrong

    def __call__(self, ids: jax.Array) -> Any:
        parts = [self.bag(ids).mean(1), self.table(ids[:, 0])]
        return self.out(jnp.concatenate(parts[::-1] if self.wrong else parts, 1))


@pytest.mark.parametrize("wrong", [False, True])
def test_what_one_side_reduces_later_is_no_finding(wrong: bool) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    batches = [(rng.integers(0, 9, (6, 3)), rng.standard_normal((6, 2), np.float32)) for _ in range(2)]
    report = compare.check(
        compare.Torch(Bag(), square, lambda parameters: torch.optim.SGD(parameters, 0.1)),
        compare.Flax(PortOfBag(wrong=wrong, rngs=nnx.Rngs(0)), square, optax.sgd(0.1)),
        batches,
        weights={"bag.weight": "bag/embedding", "table.weight": "table/embedding"},
        steps=2,
        quick=True,
    )
    assert report.verdict == ("mismatch" if wrong else "match"), str(report)
    if report.divergence is not None:
        assert report.divergence.cause is not None
        assert "order" in report.divergence.cause.name
        assert not report.others


@pytest.mark.parametrize(("padding", "verdict"), [("CAUSAL", True), ("VALID", False)])
def test_shapes_that_agree_again_behind_a_convolution(padding: str, verdict: bool) -> None:
    rng = np.random.default_rng(0)
    found = shapes_by_layer(
        compare.Torch(Original(cut=True)),
        compare.Flax(Port(padding, wrong=False, rngs=nnx.Rngs(0))),
        [(rng.standard_normal((5, 7, 4), np.float32), None)],
    )
    assert found.ok == verdict
