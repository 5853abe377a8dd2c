"""Pairs the inputs and outputs of modules: which tensor of one side is compared with which of the other."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from compare.alignment.pairings import NotCompared, Pairing
from compare.alignment.partners import Call, Kinds, partners, unpaired
from compare.alignment.tensors import Order, TensorPairs
from compare.step.arguments import Names
from compare.step.layouts import ActivationLayouts
from compare.step.observation import Observation, Port
from compare.step.stage import Stage
from compare.weights.links import Link


def align_modules(
    links: Sequence[Link], torch: Observation, jax: Observation, kinds: Kinds, names: tuple[Names, Names] = ({}, {})
) -> tuple[list[Pairing], list[NotCompared]]:
    """Pair the inputs and outputs of modules, in the torch side's order of execution.

    Args:
        links: Which weight is which.
        torch: A step of the torch side in float64; its values decide between layouts of equal shape.
        jax: The same step of the JAX side.
        kinds: The class of each module that ran, by path, on the torch and on the JAX side.
        names: The names of each module's arguments, by path, on the torch and on the JAX side.

    """
    torch_calls, jax_calls = _calls(torch.forward), _calls(jax.forward)
    sizes = _output_sizes(torch.forward), _output_sizes(jax.forward)
    partner = partners(links, torch_calls, jax_calls, kinds, sizes)
    features = _flattened(links)
    layouts = ActivationLayouts(features.values(), torch, jax)
    with_weights = {link.torch.rpartition(".")[0] for link in links}
    pair = TensorPairs(torch, jax, names)
    pairings: list[Pairing] = []
    orders = _orders(pair, layouts, torch_calls, jax_calls, partner, kinds[0])
    of_flax = _lstm_cells_of_flax(links)
    for call, ports in torch_calls.items():
        partner_call = partner.get(call, ("", -1))
        theirs = jax_calls.get(partner_call, [])
        for kind in ("input", "output"):
            # A linear layer's output is in the order of its own weights, so it is flattened in no order of images. Only
            # the input of such a layer, and modules without weights before it, such as Dropout, can be.
            may_be_flattened = call[0] not in with_weights or (kind == "input" and call[0] in features)
            layout = partial(layouts, may_be_flattened=may_be_flattened)
            paths, both = (call[0], partner_call[0]), (_of_kind(ports, kind), _of_kind(theirs, kind))
            order = orders.get(paths) if kind == "input" else None
            if paths in of_flax:
                order = _CARRY_FIRST.get(tuple(tuple(port.leaf for port in each) for each in both), order)
            pairings += pair(*both, layout, order)
    rank = {port: number for number, port in enumerate(torch.forward)}
    pairings.sort(key=lambda pairing: rank[pairing.ports[0]] if pairing.ports else 0)
    return pairings, _not_compared(links, pairings, torch_calls, jax_calls, partner)


_CELLS = ("RNNCell", "GRUCell", "LSTMCell")
"""Torch's modules whose partners may take the state first."""


def _lstm_cells_of_flax(links: Sequence[Link]) -> set[tuple[str, str]]:
    """Find the LSTM cells of both sides, by path, whose weights have the names that torch and Flax give them.

    A cell that the user has written has other names. It may have the carry in another order than Flax's.
    """
    found = set()
    for link in links:
        cell, _, leaf = link.torch.rpartition(".")
        *path, layer, _ = ("", *link.jax.split("/"))
        if leaf == "weight_hh" and layer in ("hi", "dense_h"):
            found.add((cell, "/".join(path[1:])))
    return found


_CARRY_FIRST: Mapping[tuple[tuple[str, ...], ...], Order] = {
    (("0.0", "0.1.0", "0.1.1"), ("0.0.0", "0.0.1", "0.1")): (2, 1, 0),
    (("0", "1"), ("0.0", "0.1", "1")): (1, 0),
}
"""The order of Flax's tensors for those of torch's LSTM cell, by the names of both.

Torch's cell takes `(x, (h, c))` and gives `(h, c)`. Flax's takes `((c, h), x)` and gives `((c, h), h)`. The values do
not tell which is which if a fault lies before the cell.
https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTMCell.html,
https://flax.readthedocs.io/en/latest/api_reference/flax.nnx/nn/recurrent.html.
"""


def _of_kind(ports: Iterable[Port], kind: str) -> list[Port]:
    return [port for port in ports if port.kind == kind]


def _orders(
    pair: TensorPairs,
    layouts: ActivationLayouts,
    torch: Mapping[Call, list[Port]],
    jax: Mapping[Call, list[Port]],
    partner: Mapping[Call, Call],
    kinds: Mapping[str, str],
) -> dict[tuple[str, str], Order]:
    """Find the order of the inputs of recurrent cells: any other module that takes two in another order has a fault."""
    calls: dict[tuple[str, str], list[tuple[list[Port], list[Port]]]] = defaultdict(list)
    for call, ports in torch.items():
        if kinds.get(call[0]) in _CELLS and (other := partner.get(call)) in jax:
            assert other is not None
            calls[call[0], other[0]].append((_of_kind(ports, "input"), _of_kind(jax[other], "input")))
    layout = partial(layouts, may_be_flattened=False)
    sizes = {paths: {len(ports) for both in each for ports in both} for paths, each in calls.items()}
    return {
        paths: pair.order(each, layout) for paths, each in calls.items() if len(sizes[paths]) == 1 < max(sizes[paths])
    }


def _output_sizes(forward: Mapping[Port, Any]) -> dict[Call, list[int]]:
    """Give how many numbers each output of a call has."""
    found: dict[Call, list[int]] = defaultdict(list)
    for port, array in forward.items():
        if port.kind == "output":
            found[port.path, port.call].append(int(np.prod(np.shape(array))))
    return dict(found)


def no_output(pairings: Sequence[Pairing], torch: Observation, jax: Observation) -> list[Pairing]:
    """Return a pairing that always differs, for when only a model's outputs are compared and none has a partner.

    Without a loss nothing else decides, and a report in which nothing decides must not be a match.
    """
    if not torch.forward or torch.loss is not None or any(pairing.decides for pairing in pairings):
        return []
    ours, theirs = (
        ", ".join(str(port) for port in _calls(seen.forward).get(("", 0), []) if port.kind == "output")
        for seen in (torch, jax)
    )
    nothing = "an output that is not a number"
    return [
        Pairing(
            Stage.FORWARD,
            ours or nothing,
            theirs or nothing,
            torch_array=lambda _: np.zeros(0),
            jax_array=lambda _: np.zeros(1),  # of another shape: infinitely far apart
        )
    ]


def _not_compared(
    links: Sequence[Link],
    pairings: Sequence[Pairing],
    torch: dict[Call, list[Port]],
    jax: dict[Call, list[Port]],
    partner: dict[Call, Call],
) -> list[NotCompared]:
    """Name the calls of which no output is compared, and the model's outputs that are not."""
    held = [{each.ports[side] for each in pairings if each.ports} for side in (0, 1)]
    reasons = unpaired(links, torch, jax)
    found = []
    for call, ports in torch.items():
        alone = [port for port in ports if port.kind == "output" and port not in held[0]]
        if call[0] and len(alone) < sum(port.kind == "output" for port in ports):
            continue
        reason = _OTHER_STRUCTURE if call in partner else reasons[0][call]
        found += [NotCompared("torch", str(port), reason) for port in (alone[:1] if call[0] else alone)]
    alone = [port for port in jax.get(("", 0), []) if port.kind == "output" and port not in held[1]]
    found += [NotCompared("jax", str(port), _OTHER_STRUCTURE) for port in alone]
    met = set(partner.values())
    return found + [
        NotCompared("jax", str(ports[-1]), reasons[1][call]) for call, ports in jax.items() if call not in met
    ]


_OTHER_STRUCTURE = "its partner's output has another structure or shape"


def _calls(forward: Iterable[Port]) -> dict[Call, list[Port]]:
    """Group ports by call, in order of entry."""
    calls: dict[Call, list[Port]] = defaultdict(list)
    for port in forward:
        calls[port.path, port.call].append(port)
    return dict(calls)


def _flattened(links: Sequence[Link]) -> dict[str, tuple[int, ...]]:
    """Find the modules that take an image's features as one vector, and the features' shape (channels, *spatial).

    The port orders them (*spatial, channels), and its weights accordingly.
    """
    found = {}
    for link in links:
        ours, theirs = link.torch_view.shape, link.jax_view.shape
        # The views of such a link are (out, C, H, W) and (H, W, C, out): see `weights.layouts`.
        if ours and theirs and len(ours) > 2 and theirs == (*ours[2:], ours[1], ours[0]):
            found[link.torch.rpartition(".")[0]] = ours[1:]
    return found
