"""Which unit of one side is which of the other: by kinds and shapes, by names, and by order.

A pairing is accepted only where to exchange any two partners would make it worse. Otherwise the map is ambiguous.
"""

import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

from compare.weights import names
from compare.weights.layouts import Views, layouts
from compare.weights.units import Slot, Unit

RELATED = [{"linear", "conv"}]
"""Kinds that can stand for one another: a convolution with a kernel of one point is a linear layer."""

Key = tuple[tuple[str, ...], tuple[int, ...], int | None]
"""The words of a path, its numbers, and its place in the order of execution or definition, if that is known."""


class Choice(NamedTuple):
    """A pair of slots, and the ways in which the one can lie upon the other."""

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


def fit(torch: Unit, jax: Unit) -> list[Choice] | None:
    """Pair the slots of two units, or give None if they cannot be the same layer.

    All of JAX's slots must find a partner, and all of torch's but for those that have other names.
    """
    if torch.kind and jax.kind and torch.kind != jax.kind and {torch.kind, jax.kind} not in RELATED:
        return None
    needed = {role for role, slots in torch.slots.items() if not all(slot.tied for slot in slots)}
    if not needed <= jax.slots.keys() <= torch.slots.keys():
        return None
    theirs = jax.sizes
    if any(size != theirs[role] for role, size in torch.sizes.items() if role in theirs):
        return None
    choices = []
    for role, slots in jax.slots.items():
        mine = torch.slots[role]
        adds = len(mine) > len(slots) == 1
        if not adds and len(mine) != len(slots):
            return None
        for a, b in zip(mine, slots * len(mine) if adds else slots, strict=True):
            options = layouts(torch, jax, role, a, b)
            if not options:
                return None
            choices.append(Choice(role, a, b, options, adds))
    return choices


def pair(
    torch: Sequence[Unit],
    jax: Sequence[Unit],
    order: tuple[Mapping[str, int], Mapping[str, int]],
    allowed: Callable[[Unit, Unit], bool],
) -> Pairing:
    """Pair the units of both sides.

    Args:
        torch: Units in the order of their definition.
        jax: Likewise.
        order: For paths of torch's and of JAX's units their place in the order of execution or, where that is not
            known, of definition. A unit that is not in it has no known place.
        allowed: Whether the user's `weights=` allow two units to be partners.

    """
    # Layers that look the same need one look.
    looks: dict[tuple[int, int], bool] = {}

    def can_be(a: Unit, b: Unit, look: tuple[int, int]) -> bool:
        if look not in looks:
            looks[look] = fit(a, b) is not None
        return looks[look] and allowed(a, b)

    number: dict[Hashable, int] = {}
    first, second = ([(unit, number.setdefault(_look(unit), len(number))) for unit in side] for side in (torch, jax))
    fits = [(i, j) for i, (a, x) in enumerate(first) for j, (b, y) in enumerate(second) if can_be(a, b, (x, y))]
    mine = names.read((unit.path, unit.kind or _guessed(unit)) for unit in torch)
    theirs = names.read((unit.path, unit.kind or _guessed(unit)) for unit in jax)
    likeness = {(i, j): names.likeness(mine[i], theirs[j]) for i, j in fits}
    in_order = _in_order(fits, _keys(torch, mine, order[0]), _keys(jax, theirs, order[1]))

    def score(i: int, j: int) -> tuple[int, int, int]:
        return *likeness[i, j], int((i, j) in in_order)

    partner: dict[int, int] = {}
    taken: set[int] = set()
    for i, j in sorted(fits, key=lambda at: score(*at), reverse=True):
        if i not in partner and j not in taken:
            partner[i] = j
            taken.add(j)
    ambiguous = _settle(partner, likeness, score, lambda i, k, j, m: _has_roles(mine[i], mine[k], theirs[j], theirs[m]))
    pairs = {i: Pair(torch[i], jax[j], fit(torch[i], jax[j]) or []) for i, j in partner.items()}
    return Pairing(
        [pairs[i] for i in sorted(pairs)],
        [(pairs[i], pairs[k]) for i, k in ambiguous],
        [unit for i, unit in enumerate(torch) if i not in partner],
        [unit for j, unit in enumerate(jax) if j not in taken],
    )


def _look(unit: Unit) -> Hashable:
    """Give all of a unit that `fit` goes by."""
    settings = tuple(unit.settings.get(name) for name in ("groups", "transpose_kernel", "flattened"))
    slots = tuple((role, *((slot.leaf, slot.shape, slot.tied) for slot in slots)) for role, slots in unit.slots.items())
    return unit.type, unit.kind, settings, slots


def _guessed(unit: Unit) -> str:
    """Guess the kind of a JAX layer of unknown type, only to see which words of its name go without saying."""
    weight = unit.slots.get("weight", unit.slots.get("bias"))
    if weight is None or weight[0].leaf not in ("kernel", "w", "scale", "embedding", "embeddings"):
        return unit.kind
    if weight[0].leaf == "scale":
        return "norm"
    if weight[0].leaf.startswith("embed"):
        return "embedding"
    return "linear" if len(weight[0].shape) == 2 else "conv"


def _in_order(fits: Iterable[tuple[int, int]], torch: Sequence[Key], jax: Sequence[Key]) -> set[tuple[int, int]]:
    """Find the pairs that the order alone would make: among layers that shapes cannot tell apart, equally many."""
    candidates: dict[int, frozenset[int]] = {}
    for i, j in fits:
        candidates[i] = candidates.get(i, frozenset()) | {j}
    groups: dict[frozenset[int], list[int]] = {}
    for i, among in candidates.items():
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
    """Sort by known places; or by number where all are called the same but for that; or give nothing."""
    at = sorted(group)
    places = [place for i in at if (place := keys[i][2]) is not None]
    if len(places) == len(at):
        return [i for _, i in sorted(zip(places, at, strict=True))]
    if len({keys[i][0] for i in at}) == 1:
        return sorted(at, key=lambda i: keys[i][1])
    return []


def _settle(
    partner: dict[int, int],
    fits: Mapping[tuple[int, int], object],
    score: Callable[[int, int], tuple[int, int, int]],
    has_roles: Callable[[int, int, int, int], bool],
) -> list[tuple[int, int]]:
    """Exchange partners while that is better, in place; give those whose exchange would be no worse, or no clearer."""
    for _ in range(len(partner)):
        ambiguous, better = [], False
        for i, k in itertools.combinations(sorted(partner), 2):
            j, m = partner[i], partner[k]
            if (i, m) not in fits or (k, j) not in fits:
                continue
            now, then = (score(i, j), score(k, m)), (score(i, m), score(k, j))
            words, numbers, order = (now[0][n] + now[1][n] - then[0][n] - then[1][n] for n in range(3))
            if (words, numbers, order) < (0, 0, 0):
                partner[i], partner[k], better = m, j, True
            elif words == 0 and (order < 0 or (numbers, order) == (0, 0) or has_roles(i, k, j, m)):
                # Numbers that contradict the order, and layers that differ by what they are called, on one side only.
                ambiguous.append((i, k))
        if not better:
            break
    return ambiguous if partner else []


def _has_roles(a: names.Path, b: names.Path, c: names.Path, d: names.Path) -> bool:
    def roles(path: names.Path) -> set[str]:
        return {token for word in path for token in word.tokens} & names.ROLES

    return roles(a) != roles(b) or roles(c) != roles(d)
