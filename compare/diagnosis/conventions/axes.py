"""The axis of a softmax, in the words of JAX."""

import dataclasses

from compare.diagnosis.place import Place
from compare.diagnosis.rewriting import Call
from compare.verdict.fix import Code


def axis_fix(call: Call, place: Place) -> Code | str:
    """Write torch's softmax, over its axis."""
    del place
    if call["dim"] is None:
        return f"give jax.nn.{call.name} the axis that torch takes"
    code = Code(f"jax.nn.{call.name}", ("x",), {"axis": call["dim"] % call.input.ndim})
    if call.input.ndim > 3:  # which JAX may lay out otherwise
        words = f"jax.nn.{call.name} over the axis that is torch's dim={call['dim']}"
        return dataclasses.replace(code, keywords={"axis": call["dim"]}, words=words, whole=False)
    return code


def _of_two(call: Call, axis: int) -> bool:
    """Return whether an axis is one of the last two: in attention scores, both sides have these last."""
    return axis % call.input.ndim >= call.input.ndim - 2


def their_axis(call: Call, axis: int) -> tuple[str, ...]:
    """Write the JAX side's call, which has the axis as torch's layout counts it if it has that layout."""
    count = call.input.ndim
    if count <= 3 or call["dim"] is None or not (_of_two(call, axis) and _of_two(call, call["dim"])):
        return ()
    axes = axis % count, axis % count - count
    default = [f"jax.nn.{call.name}(x)"] if axes[1] == -1 else []
    return (*(f"jax.nn.{call.name}(x, axis={each})" for each in axes), *default)
