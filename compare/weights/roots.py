"""Pairs the models of two states: a state may have several, and copies of one model have equal layers.

A model of torch's is an entry of its state. On the JAX side it may be anywhere, as the parameters of a `TrainState` and
those of its target are: "actor" and "actor_target" are "actor/params" and "actor/target_params". So places are compared
by the sizes of their tensors, and names decide among models of the same sizes.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from compare.weights.layers import Layer
from compare.weights.names import SYNONYMS

SAY_NOTHING = frozenset({"params", "parameters", "state", "model", "module", "variables", "weights"})
"""Words of a place that do not tell one model from another."""


def find_roots(torch: Sequence[Layer], jax: Sequence[Layer], models: Iterable[str]) -> dict[str, str]:
    """Return the place on the JAX side for each model of torch's for which no other place would do as well.

    Args:
        torch: The layers of torch's state.
        jax: The layers of the JAX state.
        models: The paths of torch's models in its state.

    """
    ours: dict[tuple[int, ...], list[str]] = {}
    for model in models:
        if sizes := _sizes(torch, model, "."):
            ours.setdefault(sizes, []).append(model)
    theirs: dict[tuple[int, ...], list[str]] = {}
    for place in _places(jax):
        theirs.setdefault(_sizes(jax, place, "/"), []).append(place)
    found: dict[str, str] = {}
    for sizes, alike in ours.items():
        places = [place for place in theirs.get(sizes, []) if not _has_inner(place, theirs[sizes])]
        if len(places) == len(alike):
            found |= _by_name(alike, places)
    return found


def _sizes(layers: Iterable[Layer], root: str, separator: str) -> tuple[int, ...]:
    """Return the sizes of all parameters under a path, in order of size."""
    return tuple(
        sorted(
            int(np.prod(shape))
            for layer in layers
            for name, shape in layer.tensors.items()
            if _under(name, root, separator) and name not in layer.settings.get("buffers", ())
        )
    )


def _under(name: str, root: str, separator: str) -> bool:
    return name.startswith(f"{root}{separator}")


def _places(layers: Iterable[Layer]) -> Iterator[str]:
    """List all inner nodes of the state."""
    names = [name.split("/") for layer in layers for name in layer.tensors]
    yield from dict.fromkeys("/".join(name[:depth]) for name in names for depth in range(1, len(name)))


def _has_inner(place: str, places: Iterable[str]) -> bool:
    """Return whether a place is the same as one of the others within it."""
    return any(_under(other, place, "/") for other in places)


def _by_name(models: Sequence[str], places: Sequence[str]) -> dict[str, str]:
    """Pair models with places by their words; nothing unless every exchange of two would be worse."""
    scores, best = best_pairs(models, places)
    for (i, j), (k, m) in itertools.combinations(best.items(), 2):
        # As in `matching`: the best assignment is accepted only if it is the only best one.
        if scores[i, j] + scores[k, m] <= scores[i, m] + scores[k, j]:
            return {}
    return {models[i]: places[j] for i, j in best.items()}


def best_pairs(ours: Sequence[str], theirs: Sequence[str]) -> tuple[np.ndarray, dict[int, int]]:
    """Return how alike each two paths are by their words, and for as many of `ours` as can be the partner's index."""
    from scipy.optimize import linear_sum_assignment

    scores = np.array([[likeness(one, other) for other in theirs] for one in ours])
    rows, columns = linear_sum_assignment(scores, maximize=True)
    return scores, dict(zip(rows.tolist(), columns.tolist(), strict=True))


def likeness(model: str, place: str) -> int:
    """Say how alike two paths are by their words, without those that tell nothing, such as "params"."""
    ours, theirs = _words(model), _words(place)
    return 4 * (ours & theirs).total() - (ours - theirs).total() - (theirs - ours).total()


def _words(path: str) -> Counter[str]:
    """Count the words and numbers of a path: "target_params" has one that tells."""
    words = (word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", path))
    return Counter({SYNONYMS.get(word, word) for word in words} - SAY_NOTHING)


def partners(roots: Mapping[str, str], torch: str, jax: str) -> bool:
    """Return whether two paths of layers may be partners, as far as it is known which model is which."""
    ours = next((place for model, place in roots.items() if f"{torch}.".startswith(f"{model}.")), None)
    theirs = next((place for place in roots.values() if f"{jax}/".startswith(f"{place}/")), None)
    return ours == theirs
