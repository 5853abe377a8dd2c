"""Tells a person what of two models' weights could not be matched, likely partners side by side."""

from compare.weights import names
from compare.weights.links import Rows, columns, part
from compare.weights.matching import Choice, Pair, Pairing
from compare.weights.units import Unit, View


def explain(missing: list[Unit], found: Pairing, undecided: list[tuple[Pair, Choice]]) -> str:
    """Write the message of the error.

    Args:
        missing: torch's units without a partner.
        found: JAX's, and the pairs that could exchange their partners.
        undecided: Slots whose layout shapes do not tell.

    """
    rows: Rows = []
    if missing or found.jax:
        rows += [("no partner, in torch", "no partner, in JAX"), *_side_by_side(missing, list(found.jax))]
    if found.ambiguous:
        unclear = {id(pair.torch): pair for both in found.ambiguous for pair in both}
        rows += [("which is which, in torch", "in JAX")]
        rows += [row for pair in unclear.values() for row in _beside(pair.torch, pair.jax)]
    if undecided:
        rows += [("which way round, in torch", "in JAX")]
    hint = ""
    for pair, choice in undecided:
        rows.append((f"  {choice.torch.name} {choice.torch.shape}", f"{choice.jax.name} {choice.jax.shape}"))
        if unknown := pair.torch.settings.get("unknown"):
            channels, points = unknown
            rows.append((f"    flattens {channels} channels of {points} points, of unknown height and width", ""))
            hint = "; copy_weights(inputs=...) finds the height and width by running the torch model once"
    return (
        "the weights cannot be matched without guessing:\n"
        f"{columns(rows)}\n"
        'pass weights={"torch name or regex": "jax/path"} for these, tensors or modules; "path.T" for a matrix to be '
        f"transposed, and None for what has no partner{hint}"
    )


def _side_by_side(torch: list[Unit], jax: list[Unit]) -> Rows:
    mine, theirs = ([*names.read((unit.path, unit.kind) for unit in side)] for side in (torch, jax))
    rows: Rows = []
    left = list(range(len(jax)))
    for unit, path in zip(torch, mine, strict=True):
        best = None
        if left:
            best = max(
                left, key=lambda j: (bool(unit.sizes.items() & jax[j].sizes.items()), names.likeness(path, theirs[j]))
            )
            left.remove(best)
        rows += _beside(unit, None if best is None else jax[best])
    return rows + [row for j in left for row in _beside(None, jax[j])]


def _beside(torch: Unit | None, jax: Unit | None) -> Rows:
    rows: Rows = []
    for role in dict.fromkeys([*(torch.slots if torch else ()), *(jax.slots if jax else ())]):
        left, right = (
            [f"{part(slot.name, View(slot.index))} {slot.shape}" for slot in (unit.slots.get(role, ()) if unit else ())]
            for unit in (torch, jax)
        )
        size = max(len(left), len(right))
        left, right = ([*cells, *[""] * (size - len(cells))] for cells in (left, right))
        rows += [(f"  {mine}", theirs) for mine, theirs in zip(left, right, strict=True)]
    return rows
