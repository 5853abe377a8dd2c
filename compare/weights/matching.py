"""Pairs the units of both sides: by kinds and shapes, by names, and by order.

A pairing is accepted only if exchanging any two partners would make it worse. Otherwise the map is ambiguous.
"""

import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from compare.weights import names
from compare.weights.layouts import Views, layouts
from compare.weights.units import Slot, Unit

RELATED = [{"linear", "conv"}]
"""Kinds that can stand for one another: a convolution with a kernel of one point is a linear layer."""

Key = tuple[tuple[str, ...], tuple[int, ...], int | None]
"""The words of a path, its numbers, and its place in the order of execution or definition, if that is known."""

Score = tuple[int, int, int]
"""How well two units match: by their words, their numbers and their order, in this order of importance."""


class Choice(NamedTuple):
    """A pair of slots, and the layouts under which they can be the same tensor."""

    role: str
    torch: Slot
    jax: Slot
    options: dict[str, Views]
    adds: bool
    """JAX's slot is the sum of this and another of torch's."""


class Pair(NamedTuple):
    """Two units that are one."""

    torch: Unit
    jax: Unit
    choices: list[Choice]


class Pairing(NamedTuple):
    """What could be paired, and what not."""

    pairs: list[Pair]
    ambiguous: list[tuple[Pair, Pair]]
    """Pairs that could as well exchange their partners."""
    torch: list[Unit]
    """Without a partner."""
    jax: list[Unit]


def fit(torch: Unit, jax: Unit, *, partly: bool = False) -> list[Choice] | None:
    """Pair the slots of two units, or give None if they cannot be the same layer.

    All slots must find a partner, but for those that need none; with `partly`, one of each is enough.
    """
    if torch.kind and jax.kind and torch.kind != jax.kind and {torch.kind, jax.kind} not in RELATED:
        return None
    shared = [role for role in jax.slots if role in torch.slots]
    if not shared or not (partly or (torch.required <= jax.slots.keys() and jax.required <= torch.slots.keys())):
        return None
    choices = []
    for role in shared:
        chosen = _choices(torch, jax, role)
        if not chosen:
            return None
        choices += chosen
    return choices


def _choices(torch: Unit, jax: Unit, role: str) -> list[Choice]:
    """Pair the slots of one role; none if they differ in size, in number, or in their kind of dtype."""
    mine, theirs = torch.slots[role], jax.slots[role]
    if torch.sizes[role] != jax.sizes[role] or mine[0].integer != theirs[0].integer:
        return []
    # torch.nn.LSTM has two biases that are only ever added, Flax's cells have one. The sum of the two is
    # then compared.
    adds = len(mine) > len(theirs) == 1
    if not adds and len(mine) != len(theirs):
        return []
    made = []
    for a, b in zip(mine, theirs * len(mine) if adds else theirs, strict=True):
        options = layouts(torch, jax, role, a, b)
        if not options:
            return []
        made.append(Choice(role, a, b, options, adds))
    return made


def pair(
    torch: Sequence[Unit],
    jax: Sequence[Unit],
    order: tuple[Mapping[str, int], Mapping[str, int]],
    allowed: Callable[[Unit, Unit], bool],
    *,
    partly: bool = False,
) -> Pairing:
    """Pair the units of both sides.

    Args:
        torch: Units in the order of their definition.
        jax: Likewise.
        order: For paths of torch's and of JAX's units their place in the order of execution or, where that is not
            known, of definition. A unit that is not in it has no known place.
        allowed: Whether the user's `weights=` allow two units to be partners.
        partly: Whether two layers may be partners of which one has a tensor that the other lacks.

    """
    mine = names.read((unit.path, unit.kind or _guessed(unit)) for unit in torch)
    theirs = names.read((unit.path, unit.kind or _guessed(unit)) for unit in jax)
    fits = _fits(torch, jax, (mine, theirs), allowed, partly=partly)
    in_order = _in_order(fits, _keys(torch, mine, order[0]), _keys(jax, theirs, order[1]))
    # What can be the same layer at all is decided by shapes alone. Names and order only choose among
    # these, so that a layer with a misleading name still finds its partner if nothing else has its shape.
    scores = {(i, j): (*names.likeness(mine[i], theirs[j]), int((i, j) in in_order)) for i, j in fits}
    partner = _assigned(scores, (len(torch), len(jax)))

    def paired(i: int, j: int) -> Pair:
        return Pair(torch[i], jax[j], fit(torch[i], jax[j], partly=partly) or [])

    unclear = _exchangeable(partner, scores, lambda i, k, j, m: _has_roles(mine[i], mine[k], theirs[j], theirs[m]))
    unclear += [
        (one, other)
        for one, other in _replaceable(partner, scores)
        # A required tensor without a partner is an error of its own: it is not reported as ambiguous too.
        if partly or _is_buffer(torch[other[0]] if one[1] == other[1] else jax[other[1]])
    ]
    return Pairing(
        [paired(i, partner[i]) for i in sorted(partner)],
        [(paired(*one), paired(*other)) for one, other in unclear],
        [unit for i, unit in enumerate(torch) if i not in partner],
        [unit for j, unit in enumerate(jax) if j not in partner.values()],
    )


def _fits(
    torch: Sequence[Unit],
    jax: Sequence[Unit],
    paths: tuple[list[names.Path], list[names.Path]],
    allowed: Callable[[Unit, Unit], bool],
    *,
    partly: bool,
) -> list[tuple[int, int]]:
    """List the units that can be partners: those with equal slots that `weights=` does not forbid."""
    # A model of 48 equal blocks has 48² pairs of each layer, and all of them are the same question for `fit`.
    looks: dict[tuple[int, int], bool] = {}
    number: dict[Hashable, int] = {}
    first, second = ([number.setdefault(_look(unit), len(number)) for unit in side] for side in (torch, jax))
    found = []
    for (i, a), (j, b) in itertools.product(enumerate(torch), enumerate(jax)):
        look = first[i], second[j]
        if look not in looks:
            looks[look] = fit(a, b, partly=partly) is not None
        # Two buffers need no partner, so equal shapes alone do not pair them: they must share a word of their names.
        needed = a.required or b.required or _share_a_word(paths[0][i], paths[1][j])
        if looks[look] and needed and allowed(a, b):
            found.append((i, j))
    return found


def _share_a_word(torch: names.Path, jax: names.Path) -> bool:
    """Whether the last parts of two paths have a word in common; the model itself has no name."""
    return not (torch or jax) or bool(torch and jax and torch[-1].tokens & jax[-1].tokens)


def _look(unit: Unit) -> Hashable:
    """Return everything that `fit` reads of a unit."""
    settings = tuple(unit.settings.get(name) for name in ("groups", "transpose_kernel", "flattened"))
    slots = tuple(
        (role, *((slot.leaf, slot.shape, slot.optional, slot.integer) for slot in slots))
        for role, slots in unit.slots.items()
    )
    return unit.type, unit.kind, settings, slots


def _guessed(unit: Unit) -> str:
    """Guess the kind of a JAX layer of unknown type, to ignore words of its name that only repeat the kind."""
    weight = unit.slots.get("weight", unit.slots.get("bias"))
    if weight is None or weight[0].leaf not in ("kernel", "w", "scale", "embedding", "embeddings"):
        return unit.kind
    if weight[0].leaf == "scale":
        return "norm"
    if weight[0].leaf.startswith("embed"):
        return "embedding"
    return "linear" if len(weight[0].shape) == 2 else "conv"


def _in_order(fits: Iterable[tuple[int, int]], torch: Sequence[Key], jax: Sequence[Key]) -> set[tuple[int, int]]:
    """Find the pairs that the order alone would make, within groups of layers that have the same possible partners."""
    candidates: dict[int, frozenset[int]] = {}
    for i, j in fits:
        candidates[i] = candidates.get(i, frozenset()) | {j}
    groups: dict[frozenset[int], list[int]] = {}
    for i, among in candidates.items():
        # Units of torch with the same set of possible partners are interchangeable by shape. If there are as
        # many of them as partners, the n-th of one side is likely the n-th of the other.
        groups.setdefault(among, []).append(i)
    found: set[tuple[int, int]] = set()
    for among, group in groups.items():
        first, second = _sorted(group, torch), _sorted(among, jax)
        if len(first) == len(second):
            found.update(zip(first, second, strict=True))
    return found


def _keys(units: Sequence[Unit], paths: Sequence[names.Path], order: Mapping[str, int]) -> list[Key]:
    return [
        (tuple(word.stem for word in path), tuple(word.number for word in path), order.get(unit.path))
        for unit, path in zip(units, paths, strict=True)
    ]


def _sorted(group: Iterable[int], keys: Sequence[Key]) -> list[int]:
    """Sort by known places, or by number where names differ by that alone; give nothing if neither is known of all."""
    at = sorted(group)
    places = [place for i in at if (place := keys[i][2]) is not None]
    if len(places) == len(at):
        return [i for _, i in sorted(zip(places, at, strict=True))]
    if len({keys[i][0] for i in at}) == 1:
        return sorted(at, key=lambda i: keys[i][1])
    return []


def _assigned(scores: Mapping[tuple[int, int], Score], size: tuple[int, int]) -> dict[int, int]:
    """Choose partners: as many pairs as there can be, and of all ways to do so the one with the best total score.

    Totals are compared in lexicographic order: words, then numbers, then order. A linear assignment maximises one
    number, so each score becomes a number in a mixed base. A digit's weight is more than the totals of all digits below
    it can differ by, and a pair is worth more than any score.
    """
    from scipy.optimize import linear_sum_assignment

    if not scores:
        return {}
    # With n pairs at most, a component's total can differ between two assignments by n (max - min). Base
    # n (max - min + 1) + 1 therefore leaves no carry from a lower digit into a higher one. The product of
    # the three bases stays far below 2**53 for the sizes of models (1000 layers, scores below 100), so
    # that float64 holds every total exactly enough.
    ranks = np.array(list(scores.values()), float)
    span = min(size) * (np.ptp(ranks, axis=0) + 1) + 1
    ranks -= ranks.min(axis=0)
    worth = np.zeros(size)
    at = np.array(list(scores))
    # The fraction is below 1/n, so that one pair more outweighs every score: as many units as possible
    # get a partner.
    worth[at[:, 0], at[:, 1]] = 1 + ((ranks[:, 0] * span[1] + ranks[:, 1]) * span[2] + ranks[:, 2]) / span.prod()
    # The modified Jonker-Volgenant algorithm (Crouse, "On implementing 2D rectangular assignment
    # algorithms", 2016), O(n³). Pairs that are not allowed are worth 0: they may be chosen where nothing
    # else is left, and are dropped afterwards.
    chosen = linear_sum_assignment(worth, maximize=True)
    return {i: j for i, j in zip(*(side.tolist() for side in chosen), strict=True) if (i, j) in scores}


def _exchangeable(
    partner: Mapping[int, int],
    scores: Mapping[tuple[int, int], Score],
    has_roles: Callable[[int, int, int, int], bool],
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """List the pairs whose partners could be exchanged without a clear loss."""
    found = []
    for (i, j), (k, m) in itertools.combinations(sorted(partner.items()), 2):
        if (i, m) not in scores or (k, j) not in scores:
            continue
        # The optimum may be one of several, and is accepted only if each exchange of two partners loses. Longer
        # cycles are not tried: of 570 random pairings of 3 to 5 units that no exchange improved, all were optimal.
        words, numbers, order = (
            scores[i, j][n] + scores[k, m][n] - scores[i, m][n] - scores[k, j][n] for n in range(3)
        )
        # With equal words, an exchange is plausible if the order speaks for it, if nothing speaks against it, or if one
        # side alone calls the two query, key or value: names that would decide it are missing on the other side.
        if words == 0 and (order < 0 or (numbers, order) == (0, 0) or has_roles(i, k, j, m)):
            found.append(((i, j), (k, m)))
    return found


def _replaceable(
    partner: Mapping[int, int], scores: Mapping[tuple[int, int], Score]
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """List the pairs in which a unit without a partner would match as well."""
    taken = set(partner.values())
    return [
        ((i, partner[i]), other)
        for i in sorted(partner)
        for other in scores
        if (other[0] not in partner and other[1] == partner[i]) or (other[0] == i and other[1] not in taken)
        if scores[other] == scores[i, partner[i]]
    ]


def _is_buffer(unit: Unit) -> bool:
    buffers = unit.settings.get("buffers", ())
    return all(slot.name in buffers for slots in unit.slots.values() for slot in slots)


def _has_roles(a: names.Path, b: names.Path, c: names.Path, d: names.Path) -> bool:
    def roles(path: names.Path) -> set[str]:
        return {token for word in path for token in word.tokens} & names.ROLES

    return roles(a) != roles(b) or roles(c) != roles(d)
