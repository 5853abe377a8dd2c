"""Recurrent layers whose gates are joined in another way than torch joins them."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from in_ci import first
from torch.nn.utils.rnn import pack_padded_sequence

import compare
from compare.diagnosis.conventions import recurrent
from compare.diagnosis.counterfactuals import FUNCTIONS
from compare.diagnosis.rewriting import Window, rewriting
from compare.torch_side.layers import recurrent_layers

RNG = np.random.default_rng(7)
FEATURES, HIDDEN, TIMES = 3, 4, 5


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("layers", "bidirectional", "batch_first"), [(1, False, True), (2, True, False)])
@pytest.mark.parametrize("kind", [torch.nn.GRU, torch.nn.LSTM])
def test_without_a_change_the_layers_give_what_torch_gives(
    kind: Any, layers: int, *, bidirectional: bool, batch_first: bool, packed: bool
) -> None:
    torch.manual_seed(0)
    model = kind(FEATURES, HIDDEN, layers, bidirectional=bidirectional, batch_first=batch_first).double()
    x: Any = torch.randn(6, TIMES, FEATURES).double() if batch_first else torch.randn(TIMES, 6, FEATURES).double()
    if packed:
        x = pack_padded_sequence(x, torch.tensor([5, 5, 4, 2, 2, 1]), batch_first=batch_first)
    cell = {torch.nn.GRU: recurrent._gru, torch.nn.LSTM: recurrent._lstm}[kind]
    seen: list[Any] = []

    def again(call: Any) -> Any:
        assert recurrent._applies(call)
        seen.append(recurrent._run(call, partial(cell, "")))
        seen.append(call.run())
        return seen[-1]

    with rewriting(Window(), frozenset(), lambda number: again, FUNCTIONS):
        model(x)
    ours, theirs = seen
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


class Original(torch.nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.inner = getattr(torch.nn, kind)(FEATURES, HIDDEN, batch_first=True, bidirectional=True)
        self.outer = torch.nn.Linear(2 * HIDDEN, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(self.inner(x)[0])


def cell(fault: str, weights: Any, states: Any, x: Any) -> Any:
    w_ih, w_hh, b_ih, b_hh = weights
    given, h = x @ w_ih.T + b_ih, states[0]
    if len(states) == 2:
        i, f, g, o = jnp.split(given + h @ w_hh.T + b_hh, 4, -1)
        f = f + 1 if fault == "forget gate" else f
        c = jax.nn.sigmoid(f) * states[1] + jax.nn.sigmoid(i) * (g if fault == "input of the cell" else jnp.tanh(g))
        return jax.nn.sigmoid(o) * (c if fault == "output of the cell" else jnp.tanh(c)), c
    (w_r, w_z, w_n), (b_r, b_z, b_n) = jnp.split(w_hh, 3), jnp.split(b_hh, 3)
    x_r, x_z, x_n = jnp.split(given, 3, -1)
    r, z = jax.nn.sigmoid(x_r + h @ w_r.T + b_r), jax.nn.sigmoid(x_z + h @ w_z.T + b_z)
    n = jnp.tanh(x_n + ((r * h) @ w_n.T + b_n if fault == "reset gate" else r * (h @ w_n.T + b_n)))
    return ((z * n + (1 - z) * h if fault == "update gate" else (1 - z) * n + z * h),)


def apply(fault: str, count: int, params: Any, x: Any) -> Any:
    def direction(end: str, x: Any) -> Any:
        weights = [params[f"{name}_l0{end}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]

        def step(states: Any, x: Any) -> Any:
            new = cell(fault, weights, states, x)
            return new, new[0]

        return jax.lax.scan(step, (jnp.zeros((len(x), HIDDEN), x.dtype),) * count, x.swapaxes(0, 1))[1].swapaxes(0, 1)

    backward = direction("_reverse", x[:, ::-1])
    backward = backward if fault == "backward outputs" else backward[:, ::-1]
    return jnp.concatenate([direction("", x), backward], -1) @ params["weight"].T + params["bias"]


@pytest.mark.parametrize(
    ("kind", "fault"),
    first(
        [
            ("GRU", "reset gate"),
            ("LSTM", "backward outputs"),
            ("GRU", ""),
            ("GRU", "update gate"),
            ("LSTM", "forget gate"),
            ("LSTM", "output of the cell"),
            ("LSTM", "input of the cell"),
        ],
    ),
)
def test_another_cell_is_named(kind: str, fault: str) -> None:
    torch.manual_seed(0)
    original = Original(kind)
    inner = {name: jnp.zeros(each.shape) for name, each in original.inner.named_parameters()}
    params = {**inner, "weight": jnp.zeros((2, 2 * HIDDEN)), "bias": jnp.zeros(2)}
    names = {f"inner.{name}": name for name in inner} | {"outer.weight": "weight", "outer.bias": "bias"}
    batches = [(RNG.normal(size=(4, TIMES, FEATURES)), RNG.normal(size=(4, TIMES, 2))) for _ in range(2)]
    report = compare.check(
        compare.Torch(original, torch.nn.MSELoss(), lambda params: torch.optim.SGD(params, 0.1)),
        compare.Jax(
            partial(apply, fault, 2 if kind == "LSTM" else 1),
            params,
            lambda output, target: jnp.mean((output - target) ** 2),
            optax.sgd(0.1),
        ),
        batches,
        weights=names,
        device="cpu",
    )
    if not fault:
        assert report.verdict == "match", str(report)
        return
    assert report.divergence is not None
    assert report.divergence.cause is not None, str(report)
    assert report.divergence.cause.name == fault


def test_a_subclass_of_a_recurrent_layer_is_one_and_a_cell_is_none() -> None:
    class Own(torch.nn.LSTM):
        pass

    model = torch.nn.ModuleDict({"own": Own(2, 3), "gru": torch.nn.GRU(2, 3), "cell": torch.nn.LSTMCell(2, 3)})
    assert recurrent_layers(model) == {"own", "gru"}
