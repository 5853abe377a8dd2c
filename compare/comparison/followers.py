"""Leaves out differences that may follow from others: steps that start from torch's values do not show it of them.

Torch's values are put in the place of what modules take and give. A skip connection may carry what no module takes:
`y = act(a(x))`, and later `concatenate([z, y])`. Where the activation differs, so does the concatenation.
"""

from collections.abc import Callable, Sequence

from compare.step.places import Source
from compare.verdict.divergence import Divergence, Role, with_search_ended


def without_followers(found: Sequence[Divergence], leads: Callable[[Divergence], bool]) -> list[Divergence]:
    """Leave out differences without a cause that share an expression with an earlier one, and have others of their own.

    If they have no others, it is the same code in another layer.

    That one then says that more may differ.

    Args:
        found: The differences, in order of computation.
        leads: Tells which of them others may follow from.

    """
    kept: list[Divergence] = []
    for each in found:
        lines = _computed(each)
        earlier = [n for n, other in enumerate(kept) if leads(other) and other.step == each.step]
        before = [number for number in earlier if lines & _computed(kept[number]) and lines - _computed(kept[number])]
        if each.cause is not None or not before:
            kept.append(each)
            continue
        kept[before[0]] = with_search_ended(kept[before[0]])
    return kept


def _computed(found: Divergence) -> set[Source]:
    return {line.source for line in found.lines if line.role is Role.COMPUTED}
