"""Which module of one side is held against which of the other, and how their inputs and outputs lie in memory."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from compare.alignment.pairings import NotCompared, Pairing, Read
from compare.step.layouts import AS_IT_IS, CHANNELS_LAST, ActivationLayouts, Layout, Rearrange
from compare.step.observation import Observation, Port, to_numpy
from compare.weights.links import Link

Call = tuple[str, int]
"""A module's path, and which of its calls within the step."""


def align_modules(
    links: Sequence[Link], torch: Observation, jax: Observation, kinds: tuple[Mapping[str, str], Mapping[str, str]]
) -> tuple[list[Pairing], list[NotCompared]]:
    """Pair what goes into modules and comes out of them, in the torch side's order of execution.

    Modules are partners where they hold the same weights; those without weights, where their partners' parents call
    modules of the same class equally often.

    Args:
        links: Which weight is which.
        torch: A step of the torch side in float64; it tells the layouts of tensors apart.
        jax: The same step of the JAX side.
        kinds: The class of each module that ran, by path, on the torch and on the JAX side.

    """
    torch_calls, jax_calls = _calls(torch.forward), _calls(jax.forward)
    partners = _partners(links, torch_calls, jax_calls)
    partners |= _without_weights(partners, torch_calls, jax_calls, kinds)
    features = _flattened(links)
    layouts = ActivationLayouts(features.values(), torch, jax)
    with_weights = {link.torch.rpartition(".")[0] for link in links}
    pairings: list[Pairing] = []
    rank = {port: number for number, port in enumerate(torch.forward)}
    lonely = []
    for call, ports in torch_calls.items():
        theirs = jax_calls.get(partners.get(call, ("", -1)), [])
        for kind in ("input", "output"):
            ours = [port for port in ports if port.kind == kind]
            # What only passes features on, to such a linear layer, has them in the same order as it.
            layout = partial(
                layouts, may_be_flattened=call[0] not in with_weights or (kind == "input" and call[0] in features)
            )
            found = list(_tensors(ours, [port for port in theirs if port.kind == kind], torch, jax, layout))
            pairings += found
            if kind == "output" and ours and not found:
                lonely.append((call, ours[0]))
    pairings.sort(key=lambda pairing: rank[pairing.ports[0]] if pairing.ports else 0)
    not_compared = [
        NotCompared("torch", str(port), _OTHER_STRUCTURE if call in partners else _ALONE) for call, port in lonely
    ]
    met = set(partners.values())
    not_compared += [NotCompared("jax", str(ports[-1]), _ALONE) for call, ports in jax_calls.items() if call not in met]
    return pairings, not_compared


_OTHER_STRUCTURE = "its partner's output has another structure or shape"

_ALONE = "no module of the other side holds the same weights; modules that are compared take what it gives"


def _calls(forward: Iterable[Port]) -> dict[Call, list[Port]]:
    """Group ports by call, in order of entry."""
    calls: dict[Call, list[Port]] = defaultdict(list)
    for port in forward:
        calls[port.path, port.call].append(port)
    return dict(calls)


def _partners(links: Sequence[Link], torch: Iterable[Call], jax: Iterable[Call]) -> dict[Call, Call]:
    """Pair the calls of modules that hold the same weights."""
    ours = _by_weights([(link.torch, ".", None) for link in links], torch)
    theirs = _by_weights([(link.jax, "/", _layer(link)) for link in links], jax)
    partners: dict[Call, Call] = {("", 0): ("", 0)}
    for weights, modules in ours.items():
        others = theirs.get(weights, [])
        if len(modules) == len(others):
            chain = list(zip(modules, others, strict=True))
        elif modules and others:  # wrapped more often on one side: the outermost and the innermost are alike
            chain = [(modules[-1], others[-1])]
            if min(len(modules), len(others)) > 1:
                chain.append((modules[0], others[0]))
        else:
            chain = []
        for calls, partner_calls in chain:
            if len(calls) == len(partner_calls):
                partners |= dict(zip(calls, partner_calls, strict=True))
    return partners


def _layer(link: Link) -> int | None:
    """Tell which layer of a stack a link is, as scanned layers keep theirs."""
    first = link.jax_view.index[:1]
    return first[0] if first and isinstance(first[0], int) else None


def _by_weights(
    named: Sequence[tuple[str, str, int | None]], calls: Iterable[Call]
) -> dict[frozenset[int], list[list[Call]]]:
    """For each set of weights, the modules that hold exactly these, outermost first; each as the list of its calls.

    The calls of a module whose weights are a stack of layers are one layer each.
    """
    by_path: dict[str, list[Call]] = defaultdict(list)
    for path, number in calls:
        by_path[path].append((path, number))
    found: dict[frozenset[int], list[list[Call]]] = defaultdict(list)
    for path, of_module in sorted(by_path.items(), key=lambda item: item[0].count(named[0][1] if named else ".")):
        if not path:
            continue
        held = {
            number: layer for number, (name, separator, layer) in enumerate(named) if name.startswith(path + separator)
        }
        layers = sorted({layer for layer in held.values() if layer is not None})
        if len(layers) == len(of_module) > 1 and None not in held.values():
            for layer, call in zip(layers, of_module, strict=True):
                found[frozenset(number for number, of in held.items() if of == layer)].append([call])
        elif held:
            found[frozenset(held)].append(of_module)
    return found


def _without_weights(
    partners: Mapping[Call, Call],
    torch: Iterable[Call],
    jax: Iterable[Call],
    kinds: tuple[Mapping[str, str], Mapping[str, str]],
) -> dict[Call, Call]:
    """Pair modules without weights by their class, within the same parent."""

    def children(calls: Iterable[Call], taken: set[Call], separator: str, kinds: Mapping[str, str]) -> Any:
        groups: dict[tuple[str, str], list[Call]] = defaultdict(list)
        for call in calls:
            if call not in taken:
                parent = call[0].rpartition(separator)[0]
                groups[parent, kinds.get(call[0], "").lower()].append(call)
        return groups

    ours = children(torch, set(partners), ".", kinds[0])
    theirs = children(jax, set(partners.values()), "/", kinds[1])
    parents = {ours_call[0]: theirs_call[0] for ours_call, theirs_call in partners.items()}
    found: dict[Call, Call] = {}
    for (parent, kind), calls in ours.items():
        others = theirs.get((parents.get(parent, "?"), kind), [])
        if len(calls) == len(others):
            found |= dict(zip(calls, others, strict=True))
    return found


def _flattened(links: Sequence[Link]) -> dict[str, tuple[int, ...]]:
    """Find the modules that take an image's features as one vector, and the features' shape (channels, *spatial).

    The port orders them (*spatial, channels), and its weights accordingly.
    """
    found = {}
    for link in links:
        ours, theirs = link.torch_view.shape, link.jax_view.shape
        if ours and theirs and len(ours) > 2 and theirs == (*ours[2:], ours[1], ours[0]):
            found[link.torch.rpartition(".")[0]] = ours[1:]
    return found


def _tensors(
    ours: list[Port],
    theirs: list[Port],
    torch: Observation,
    jax: Observation,
    layout_of: "Callable[[np.ndarray, np.ndarray], Layout | None]",
) -> Iterator[Pairing]:
    """Pair the tensors of one call: by name where both sides name their outputs, else one by one from the first."""
    names = {port.leaf for port in theirs if not port.leaf[:1].isdigit()}
    by_name = [(port, other) for port in ours for other in theirs if port.leaf == other.leaf and port.leaf in names]
    for port, other in by_name or zip(ours, theirs, strict=False):
        values = to_numpy(torch.forward[port]), to_numpy(jax.forward[other])
        layout = layout_of(*values)
        floating = values[0].dtype.kind == values[1].dtype.kind == "f"
        if layout is None and not (floating and port.kind == "output" and len(ours) == len(theirs) == 1):
            return
        if layout is None:  # of two shapes: as far apart as can be, and nothing to go on with
            likely = CHANNELS_LAST if values[0].ndim == values[1].ndim > 2 else AS_IT_IS
            yield Pairing(
                "forward",
                str(port),
                str(other),
                _reader(port, lambda array: array),
                _reader(other, likely.layout.to_torch),
                decides=port.path == "",
                ports=(port, other),
            )
            return
        yield Pairing(
            "forward",
            str(port),
            str(other),
            _reader(port, lambda array: array),
            _reader(other, layout.to_torch),
            decides=port.path == "" and port.kind == "output",
            ports=(port, other),
            to_jax=layout.to_jax,
        )


def _reader(port: Port, layout: Rearrange) -> Read:
    return lambda observation: layout(to_numpy(observation.forward[port]))
