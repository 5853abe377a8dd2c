"""Finds the parameters that a collection of a state belongs to: Linen keeps running statistics in a tree beside them.

`module.init` gives {"params": {"bn": {"scale": ...}}, "batch_stats": {"bn": {"mean": ...}}}, and programs keep these
two in a state as they like. A collection has layers that the parameters have at the same paths, with tensors of other
names.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence

from compare.weights.layers import Layer
from compare.weights.roots import likeness


def with_collections(layers: Sequence[Layer]) -> list[Layer]:
    """Put the tensors of collections into the layers of their parameters, as buffers."""
    leaves = {layer.path: {name.rpartition("/")[2] for name in layer.tensors} for layer in layers}
    owners: dict[str, str] = {}
    for root in _roots(leaves):
        if any(_inside(root, other) for other in owners):
            continue
        inner = [path.removeprefix(root).strip("/") for path in leaves if _inside(path, root)]
        places = [place for place in _places(leaves, inner, root) if _belongs(root, place, inner, leaves)]
        best = sorted(((_nearness(root, place), place) for place in places), reverse=True)
        # Of two places that are as near, neither is known to be meant.
        if best and (len(best) == 1 or best[0][0] > best[1][0]):
            owners[root] = best[0][1]
    found = {layer.path: layer for layer in layers if not any(_inside(layer.path, root) for root in owners)}
    for layer in layers:
        for root in (each for each in owners if _inside(layer.path, each)):
            path = _joined(owners[root], layer.path.removeprefix(root).strip("/"))
            owner = found.get(path, layer._replace(path=path, tensors={}))
            settings = {**owner.settings, "buffers": [*owner.settings["buffers"], *layer.tensors]}
            found[path] = owner._replace(settings=settings, tensors={**owner.tensors, **layer.tensors})
    return [*found.values()]


def _roots(leaves: Iterable[str]) -> list[str]:
    """List all inner nodes, the outermost first."""
    found = {"/".join(path.split("/")[:depth]): depth for path in leaves for depth in range(1, path.count("/") + 2)}
    return sorted(filter(None, found), key=lambda each: found[each])


def _places(leaves: Iterable[str], inner: Sequence[str], root: str) -> Iterator[str]:
    """List the nodes that have a layer at one of the inner paths, and those beside the collection."""
    ends = [path.removesuffix(each).rstrip("/") for each in inner for path in leaves if _ends(path, each)]
    parent = root.rpartition("/")[0]
    inside = (path.removeprefix(parent).strip("/") for path in leaves if _inside(path, parent))
    yield from dict.fromkeys([*ends, *(_joined(parent, path.partition("/")[0]) for path in inside if path)])


def _ends(path: str, inner: str) -> bool:
    return bool(inner) and (path == inner or path.endswith(f"/{inner}"))


def _belongs(root: str, place: str, inner: Sequence[str], leaves: dict[str, set[str]]) -> bool:
    """Tell whether all layers of a collection may be those of the parameters at a place, with tensors of other names.

    A norm without parameters has running statistics alone: a collection of that name may have layers of its own.
    """
    if _inside(place, root) or _inside(root, place):
        return False
    theirs = [leaves.get(_joined(place, each)) for each in inner]
    own = [leaves[_joined(root, each)] for each in inner]
    named = "stats" in root.rpartition("/")[2]
    if not named and not set().union(*own) <= {"mean", "var"}:
        return False
    return all(not here & there if there else named for here, there in zip(own, theirs, strict=True))


def _nearness(root: str, place: str) -> tuple[int, int]:
    """Say how near a place is to a collection: by the first keys that the paths share, and by the words in them."""
    pairs = zip(root.split("/"), place.split("/"), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return shared, likeness(root, place)


def _inside(path: str, root: str) -> bool:
    return f"{path}/".startswith(f"{root}/") if root else True


def _joined(root: str, inner: str) -> str:
    return "/".join(filter(None, (root, inner)))
