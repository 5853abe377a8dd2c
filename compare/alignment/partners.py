"""Pairs the calls of modules of both sides: by the weights that they hold, else by their place and class."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from compare.weights.links import Link, layer_of

Call = tuple[str, int]
"""A module's path, and which of its calls within the step."""

Kinds = tuple[Mapping[str, str], Mapping[str, str]]
"""The class of each module that ran, by path, on the torch and on the JAX side."""


_Groups = dict[tuple[str, str], list[Call]]
"""Calls by their parent and class."""

_Weighted = dict[frozenset[int], list[list[Call]]]
"""For each set of weights, the modules that hold exactly these, each as the list of its calls."""


Sizes = Mapping[Call, Sequence[int]]
"""How many numbers each output of a call has."""


def partners(
    links: Sequence[Link], torch: Iterable[Call], jax: Iterable[Call], kinds: Kinds, sizes: tuple[Sizes, Sizes]
) -> dict[Call, Call]:
    """Pair calls of modules that hold the same weights.

    Those without weights are paired where their partners' parents call modules of the same class equally often.
    """
    found = _with_weights(links, torch, jax, sizes)
    return found | _without_weights(found, torch, jax, kinds)


def _with_weights(
    links: Sequence[Link], torch: Iterable[Call], jax: Iterable[Call], sizes: tuple[Sizes, Sizes]
) -> dict[Call, Call]:
    """Pair the calls of modules that hold the same weights."""
    ours, theirs = weighted(links, torch, jax)
    found: dict[Call, Call] = {("", 0): ("", 0)}
    # Weights have been matched already, so the set of weights that a module holds identifies it, whatever
    # its name and however deep it is: a container holds the union of its children's.
    for weights, modules in ours.items():
        others = theirs.get(weights, [])
        # Leave out the modules whose number of calls no module of the other side has. Such a module is part of another
        # one, as a cell that a recurrent layer calls for each time step.
        numbers = {len(calls) for calls in modules} & {len(calls) for calls in others}
        modules, others = ([calls for calls in each if len(calls) in numbers] for each in (modules, others))
        if len(modules) == len(others):
            chain = list(zip(modules, others, strict=True))
        elif min(len(modules), len(others)) > 1:  # only the innermost and outermost correspond
            chain = [(modules[-1], others[-1]), (modules[0], others[0])]
        elif modules and others:
            inner = modules[-1], others[-1]
            chain = [_of_wrappers(modules, others, sizes) if _are_several(links, weights) else inner]
        else:
            chain = []
        for calls, partner_calls in chain:
            if len(calls) == len(partner_calls):
                found |= dict(zip(calls, partner_calls, strict=True))
    return found


def _of_wrappers(
    ours: list[list[Call]], theirs: list[list[Call]], sizes: tuple[Sizes, Sizes]
) -> tuple[list[Call], list[Call]]:
    """Choose a pair where one side has one module, and the other has several around the same weights.

    A block may keep its layers in a container of their own, and compute more than this does: then the sizes of the
    outputs tell which of the two is meant, or else the paths.
    """

    def score(pair: tuple[list[Call], list[Call]]) -> tuple[bool, bool]:
        (one, *_), (other, *_) = pair
        same = sorted(sizes[0].get(one, ())) == sorted(sizes[1].get(other, ()))
        return same, one[0].replace(".", "/") == other[0]

    pairs = [(one, other) for one in reversed(ours) for other in reversed(theirs)]  # the innermost first
    return max(pairs, key=score)


def _are_several(links: Sequence[Link], weights: Iterable[int]) -> bool:
    """Tell whether weights are of several layers on both sides."""
    held = [links[number] for number in weights]
    layers = {each.torch.rpartition(".")[0] for each in held}, {each.jax.rpartition("/")[0] for each in held}
    return min(map(len, layers)) > 1


def weighted(links: Sequence[Link], torch: Iterable[Call], jax: Iterable[Call]) -> tuple[_Weighted, _Weighted]:
    """Return the calls of both sides by the weights that they hold."""
    ours = _by_weights([(link.torch, ".", None) for link in links], torch)
    return ours, _by_weights(
        [(name, "/", layer_of(link)) for name, link in zip(_by_layer(links), links, strict=True)], jax
    )


def _by_layer(links: Sequence[Link]) -> list[str]:
    """Give the names of the JAX side, with what is kept beside a layer's parameters put into the layer.

    In a program's state, Linen's statistics lie in a tree of their own: "batch_stats/bn/mean" is of "params/bn".
    """
    parents: dict[str, set[str]] = defaultdict(set)
    for link in links:
        if not link.torch.rpartition(".")[2].startswith("running_"):
            parents[link.torch.rpartition(".")[0]].add(link.jax.rpartition("/")[0])
    names = []
    for link in links:
        layer, _, leaf = link.torch.rpartition(".")
        elsewhere = leaf.startswith("running_") and len(parents[layer]) == 1
        names.append(f"{next(iter(parents[layer]))}/{link.jax.rpartition('/')[2]}" if elsewhere else link.jax)
    return names


def unpaired(
    links: Sequence[Link], torch: Iterable[Call], jax: Iterable[Call]
) -> tuple[dict[Call, str], dict[Call, str]]:
    """Return the reason for each call of the torch and of the JAX side that has no partner, if it has none."""
    sides = weighted(links, torch, jax)
    # A call that holds no weights is in no group.
    found = (dict.fromkeys(torch, _NO_WEIGHTS), dict.fromkeys(jax, _NO_WEIGHTS))
    for reasons, own, other in zip(found, sides, reversed(sides), strict=True):
        for weights, modules in own.items():
            for calls in modules:
                reasons |= dict.fromkeys(calls, _reason(calls, other.get(weights, [])))
    return found


def _reason(calls: Sequence[Call], others: Sequence[Sequence[Call]]) -> str:
    """Tell why the calls of a module have no partner among the modules that hold the same weights."""
    if not others:
        return "no module that holds the same weights is seen to run on the other side"
    if any(len(other) == len(calls) for other in others):
        return "the other side has a different number of modules around the same weights"
    here, there = len(calls), len(others[0])
    return f"its calls cannot be paired: {here} on this side, {there} of the module with the same weights on the other"


_NO_WEIGHTS = (
    "it holds no weights that have a partner, and the other side has no module of the same class that is called as "
    "often in the same place"
)


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
        # A scan over 12 stacked layers calls its one body 12 times: call n holds the n-th slice of each weight. Another
        # scan, or a map over the layers, calls them once more.
        if len(layers) > 1 and None not in held.values() and len(of_module) % len(layers) == 0:
            for at, layer in enumerate(layers):
                slices = frozenset(number for number, of in held.items() if of == layer)
                found[slices].append(of_module[at :: len(layers)])
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

    def children(
        calls: Iterable[Call], taken: set[Call], separator: str, kinds: Mapping[str, str]
    ) -> dict[tuple[str, str], list[Call]]:
        groups: _Groups = defaultdict(list)
        for call in calls:
            if call not in taken:
                parent = call[0].rpartition(separator)[0]
                groups[parent, kinds.get(call[0], "").lower()].append(call)
        return groups

    ours = children(torch, set(partners), ".", kinds[0])
    theirs = children(jax, set(partners.values()), "/", kinds[1])
    # A dict keeps the last value of a key. In reversed order, that is the partner of the module's first call.
    parents = {ours_call[0]: theirs_call for ours_call, theirs_call in reversed([*partners.items()])}
    # A scan over blocks runs one module for several of torch's: its calls are those of the first block, then of the
    # next.
    layers: dict[tuple[str, str], list[tuple[int, list[Call]]]] = defaultdict(list)
    found: dict[Call, Call] = {}
    for (parent, kind), calls in ours.items():
        path, number = parents.get(parent, ("?", 0))
        layers[path, kind].append((number, calls))
        others = theirs.get((path, kind), [])
        if len(calls) == len(others):
            found |= dict(zip(calls, others, strict=True))
    for group, each in layers.items():
        in_order = [call for _, calls in sorted(each, key=lambda item: item[0]) for call in calls]
        if len(in_order) == len(theirs.get(group, [])):
            found |= dict(zip(in_order, theirs[group], strict=True))
    return found
