"""Describes how one result is related to the other, if no function explains their difference."""

import numpy as np

from compare.numerics.relations import Kind, Relation, is_simple
from compare.step.observation import Port
from compare.verdict.divergence import Cause, Part
from compare.verdict.fix import Code, source, written

NAMES = {Kind.FLIPPED: "reversed", Kind.ROLLED: "shifted", Kind.BLOCKS: "order"}
"""What a cause is called, where not as its kind."""


NOT_A_NUMBER = "not a number"
"""What the cause is called where the JAX side alone is not finite."""


def related_cause(how: Relation, place: str, port: Port | None, *, as_jax: bool) -> Cause:
    """Describe a relation that holds at other steps too.

    Args:
        how: How the JAX side's array comes from torch's.
        place: The name of what differs.
        port: Torch's, of what a module takes or gives; None for anything else.
        as_jax: Whether the JAX side lays the array out as torch does, so that its axes are the same.

    """
    name, gives = NAMES.get(how.kind, str(how.kind)), f"{place}: the JAX side gives {how}"
    general = f"the JAX side gives {how}"
    if port is not None and port.kind == "input":  # what a module takes is not what it gives
        leaf = port.leaf.partition(".")[2]
        name, general = f"input {name}", f"the JAX side has {how} for an input"
        gives = f"{place}: the JAX side has {how} for {f'input {leaf}' if leaf else 'the input'} of {port.module}"
    code = undone(how) if as_jax or not (how.axes or how.order) else None
    fix = written(code) if code else ""
    return Cause(
        name,
        f"{name}: {gives}",
        fix,
        "docs/report.md",
        (code,) if code else (),
        # An order or a mask is described in part only: two places whose descriptions are equal may differ.
        () if how.kind in (Kind.ORDER, Kind.MASKED) else (Part(name, general, fix, code),),
    )


def unlike(ours: np.ndarray, theirs: np.ndarray, *, gradient: bool) -> Cause | None:
    """Describe arrays that cannot be related: of different shapes, or not finite on the JAX side alone."""
    if ours.shape != theirs.shape:
        shapes = f"torch has shape {ours.shape}, the JAX side has {theirs.shape}"
        return Cause("shape", f"shape: {shapes}", "", "docs/report.md")
    if lost := int((~np.isfinite(theirs) & np.isfinite(ours)).sum()):
        says = f"{NOT_A_NUMBER}: {lost} of {theirs.size} elements are NaN or infinite on the JAX side alone"
        return Cause(NOT_A_NUMBER, says, *(_UNSAFE if gradient else ("",)))
    return None


def farthest(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Say where two arrays of one shape differ most."""
    where = np.unravel_index(int(np.argmax(np.abs(ours - theirs))), ours.shape)
    pairs = [(f"{ours[where]:.{digits}g}", f"{theirs[where]:.{digits}g}") for digits in (6, 9, 12, 17)]
    torch, jax = next((pair for pair in pairs if pair[0] != pair[1]), pairs[0])
    place = f"largest difference at [{', '.join(map(str, where))}]: " if ours.ndim else ""
    return f"{place}torch has {torch}, the JAX side has {jax}"


_UNSAFE = (
    "where a function is unsafe at some inputs, jnp.where must guard its input as well as its output",
    "https://docs.jax.dev/en/latest/faq.html#gradients-contain-nan-where-using-where",
)
"""What to do about a gradient that is not a number where the value is one, and where that is documented."""


def undone(how: Relation) -> Code | None:
    """Write what makes torch's array of the JAX side's, y; None where nothing simple does."""
    back = tuple(int(i) for i in np.argsort(how.order))
    axis = how.axes[0] if how.axes else 0
    match how.kind:
        case Kind.TRANSPOSED:
            return Code("jnp.transpose", ("y", str(back)))
        case Kind.FLIPPED:
            return Code("jnp.flip", ("y",), {"axis": how.axes if len(how.axes) > 1 else axis})
        case Kind.ROLLED:
            return Code("jnp.roll", ("y", str(-int(how.number))), {"axis": axis})
        case Kind.BLOCKS:
            # argsort of a permutation is its inverse.
            parts = f"[jnp.split(y, {len(back)}, axis={axis})[i] for i in {back}]"
            return Code("jnp.concatenate", (parts,), {"axis": axis})
        case Kind.ORDER if len(back) <= 16:
            return Code("jnp.take", ("y", f"jnp.array({list(back)})"), {"axis": axis})
        case Kind.FACTOR if is_simple(how.number):
            return _over(how.number)
        case _:
            return None


def _over(number: float) -> Code:
    """Undo a factor."""
    inverse = round(1 / number, 9)
    return Code(around=f"{source(inverse)} * y" if inverse.is_integer() else f"y / {source(number)}")


def equations_of(how: Relation, ours: np.ndarray) -> int:
    """Count the equations that a relation satisfies beyond what it was fitted to, at most 3.

    A permutation of n slices with several elements each is confirmed by the rest of the elements; a mask, by the
    elements that are not zero.
    """
    if how.kind is Kind.ORDER:
        return 3 if ours.size >= 3 * len(how.order) else 1
    if how.kind is Kind.MASKED and how.mask is not None:
        return min(int(how.mask.size - how.mask.sum()), 3)
    return 1
