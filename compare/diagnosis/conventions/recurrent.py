"""What the JAX side may compute in the place of torch's recurrent layers: the same gates, joined in another way.

Torch's formulas: https://docs.pytorch.org/docs/stable/generated/torch.nn.GRU.html, and torch.nn.LSTM.html there.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from compare.diagnosis.conventions.base import DOCS, Alternative, says
from compare.diagnosis.rewriting import Call

Cell = Callable[[Any, Sequence[Any], Any, Any], list[Any]]
"""Makes the new states of what the input gives the gates, the states, and the weight and bias of the hidden state."""


class _Layers(NamedTuple):
    """The arguments of `torch.gru` or `torch.lstm`."""

    steps: list[Any]
    """The inputs by time, each (sequences, features): of packed sequences, those that are as long."""
    states: list[Any]
    """Each (layers * directions, sequences, features): h, and c of an LSTM."""
    weights: list[Any]
    """For each layer and direction w_ih, w_hh, b_ih, b_hh."""
    directions: int
    packed: bool
    batch_first: bool


def _at(call: Call) -> int | None:
    """Return the place of the list of weights among the arguments."""
    return next((position for position, value in enumerate(call.args) if isinstance(value, list)), None)


def _read(call: Call) -> _Layers:
    at = _at(call)
    assert at is not None
    hidden, weights, rest = call.args[at - 1], call.args[at], call.args[at + 1 :]
    packed, batch_first = at == 3, at != 3 and bool(rest[5])
    inputs = call.args[0].transpose(0, 1) if batch_first else call.args[0]
    steps = list(inputs.split(call.args[1].tolist()) if packed else inputs.unbind(0))
    return _Layers(steps, list(hidden) if isinstance(hidden, list | tuple) else [hidden], weights, 1 + bool(rest[4]),
                   packed, batch_first)  # fmt: skip


def _applies(call: Call) -> bool:
    """Tell whether the layers have biases, no dropout between them and no projections."""
    at = _at(call)
    if at is None or len(call.args) < at + 6:
        return False
    biases, layers, dropout, training, bidirectional = call.args[at + 1 : at + 6]
    return bool(biases) and not (dropout and training) and len(call.args[at]) == 4 * layers * (1 + bool(bidirectional))


def _run(call: Call, cell: Cell) -> Any:
    """Compute the layers step by step with another cell."""
    import torch

    layers = _read(call)
    steps, last = layers.steps, [list[Any]() for _ in layers.states]
    for first in range(0, len(layers.weights), 4 * layers.directions):
        outputs: list[list[Any]] = [[] for _ in steps]
        for direction in range(layers.directions):
            at = first // 4 + direction
            w_ih, w_hh, b_ih, b_hh = layers.weights[4 * at : 4 * at + 4]
            states = [state[at] for state in layers.states]
            times = range(len(steps))
            for time in reversed(times) if direction else times:
                count = len(steps[time])
                made = cell(steps[time] @ w_ih.T + b_ih, [state[:count] for state in states], w_hh, b_hh)
                states = [torch.cat([new, old[count:]]) for new, old in zip(made, states, strict=True)]
                outputs[time].append(made[0])
            for found, state in zip(last, states, strict=True):
                found.append(state)
        steps = [torch.cat(each, -1) for each in outputs]
    output = torch.cat(steps) if layers.packed else torch.stack(steps)
    return output.transpose(0, 1) if layers.batch_first else output, *map(torch.stack, last)


def _gru(variant: str, given: Any, states: Sequence[Any], w_hh: Any, b_hh: Any) -> list[Any]:
    import torch

    (h,), (w_r, w_z, w_n), (b_r, b_z, b_n) = states, w_hh.chunk(3), b_hh.chunk(3)
    x_r, x_z, x_n = given.chunk(3, -1)
    r, z = torch.sigmoid(x_r + h @ w_r.T + b_r), torch.sigmoid(x_z + h @ w_z.T + b_z)
    hidden = (r * h) @ w_n.T + b_n if variant == "reset first" else h @ w_n.T + b_n
    n = torch.tanh(x_n + (hidden if variant in ("reset first", "no reset") else r * hidden))
    return [z * n + (1 - z) * h if variant == "exchanged" else (1 - z) * n + z * h]


def _lstm(variant: str, given: Any, states: Sequence[Any], w_hh: Any, b_hh: Any) -> list[Any]:
    import torch

    h, c = states
    i, f, g, o = (given + h @ w_hh.T + b_hh).chunk(4, -1)
    f = f + 1 if variant == "forget bias" else f
    new = torch.sigmoid(f) * c + torch.sigmoid(i) * (g if variant == "no tanh of the input" else torch.tanh(g))
    return [torch.sigmoid(o) * (new if variant == "no tanh" else torch.tanh(new)), new]


def _not_turned_back(call: Call) -> Any:
    """Leave what the backward direction gives in its own order of time."""
    import torch

    layers = _read(call)
    output, *states = call.run()
    forward, backward = output.chunk(2, -1)
    return torch.cat([forward, backward.flip(1 if layers.batch_first else 0)], -1), *states


def _is_bidirectional(call: Call) -> bool:
    if not _applies(call):
        return False
    layers = _read(call)
    return layers.directions == 2 and not layers.packed and len(layers.weights) == 8 and len(layers.steps) > 1


_CELLS = (
    ("gru", "reset first", "reset gate", "applies the reset gate to the state, torch to its product with the weights",
     "n = jnp.tanh(x @ W_in + b_in + r * (h @ W_hn + b_hn)), as nnx.GRUCell computes it"),
    ("gru", "no reset", "reset gate", "has no reset gate",
     "n = jnp.tanh(x @ W_in + b_in + r * (h @ W_hn + b_hn)), as nnx.GRUCell computes it"),
    ("gru", "exchanged", "update gate", "takes z for 1 - z, and 1 - z for z", "new_h = (1 - z) * n + z * h"),
    ("lstm", "forget bias", "forget gate", "adds 1 to the forget gate",
     "leave out the 1: of Haiku's LSTM, subtract it from the forget gate's bias when the weights are copied"),
    ("lstm", "no tanh", "output of the cell", "gives the cell's state without tanh", "new_h = o * jnp.tanh(new_c)"),
    ("lstm", "no tanh of the input", "input of the cell", "takes the cell's input without tanh",
     "new_c = f * c + i * jnp.tanh(g)"),
)  # fmt: skip

RECURRENT = (
    *(
        Alternative(
            name=name,
            functions=(function,),
            compute=partial(_run, cell=partial({"gru": _gru, "lstm": _lstm}[function], variant)),
            jax_does=does,
            fix=says(fix),
            source=f"{DOCS}torch.nn.{function.upper()}.html",
            applies=_applies,
        )
        for function, variant, name, does, fix in _CELLS
    ),
    Alternative(
        name="backward outputs",
        functions=("gru", "lstm"),
        compute=_not_turned_back,
        jax_does="gives the outputs of the backward direction in its own order, the last time first",
        fix=says("reverse what the backward direction gives along the axis of time, before it is joined"),
        source=f"{DOCS}torch.nn.LSTM.html",
        applies=_is_bidirectional,
    ),
)
