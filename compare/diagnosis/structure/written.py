"""Fixes of structure as code for the JAX side, with names for the inputs and outputs of torch's modules.

The JAX side's own expressions stand where these values are: `compare.mending.rewriting` finds them.
"""

from compare.diagnosis.conventions.activations import ACTIVATIONS, activations
from compare.diagnosis.structure.edit import Context
from compare.diagnosis.structure.graph import Node, Ref
from compare.verdict.fix import Code

_JOINED = {"add": "{} + {}", "mul": "{} * {}", "sub": "{} - {}", "div": "{} / {}", "matmul": "{} @ {}"}


def of_two(node: Node) -> str:
    """Write an operation of two tensors, with {} for each; "" for any other."""
    # A sum with a factor (alpha) or a division that rounds is another operation.
    plain = len(node.args) == len(node.inputs) == 2 and not node.kwargs and all(isinstance(x, Ref) for x in node.args)
    return _JOINED.get(node.name, "") if plain else ""


def function_of(node: Node) -> str:
    """Name JAX's function for an activation of torch's, "jax.nn.relu"; "" for any other operation."""
    code = activations()[ACTIVATIONS[node.name]][1] if node.name in ACTIVATIONS else None
    return code.call if code and code.around == "{}" else ""


def without(function: str) -> Code | None:
    """Write nothing in the place of a function of one tensor that the JAX side applies and torch does not."""
    name = _FUNCTIONS.get(function)
    return Code(around="x", before=(f"{name}(x, ...)",)) if name else None


_FUNCTIONS = {
    **{
        name: f"jax.nn.{name}" for name in ("relu", "gelu", "silu", "sigmoid", "leaky_relu", "elu", "softplus", "relu6")
    },
    **{name: f"jax.nn.{name}" for name in ("mish", "selu", "softmax", "log_softmax")},
    "hardswish": "jax.nn.hard_swish",
    "hardsigmoid": "jax.nn.hard_sigmoid",
    "logsigmoid": "jax.nn.log_sigmoid",
    **{name: f"jnp.{name}" for name in ("tanh", "log", "sin", "cos", "exp", "abs")},
    "gelu with approximate=True": "jax.nn.gelu",
    "a square": "jnp.square",
    "a square root": "jnp.sqrt",
}
"""JAX's functions, by the names that the search has for torch's."""


def joined_again(context: Context, node: Node, kept: int) -> Code | None:
    """Write a sum or product of which the JAX side has one operand alone: `x = x + f(x)` for `x = f(x)`."""
    pattern, operands = of_two(node), [number for _, number in node.inputs]
    # The JAX side's expression for the operand is exchanged. Where torch takes the operand elsewhere too, the JAX side
    # may do so by the same expression.
    if not pattern or operands.count(kept) != 1 or not context.is_used_once(kept):
        return None
    names = ["y" if number == kept else "x" for number in operands]
    values = {name: context.ports_of(number) for name, number in zip(names, operands, strict=True)}
    values[WHOLE] = context.ports_of(node.outputs[0])
    return Code(around=pattern.format(*names), before=("y",), values=values)


WHOLE = "whole"
"""The name of torch's value in whose place the JAX side has `y`."""


def taken(context: Context, ours: int, theirs: int, fix: str) -> Code:
    """Say which value torch takes, and which the JAX side: the user's code may write it in many ways."""
    values = {WHOLE: context.ports_of(ours), "y": context.ports_of(theirs)}
    return Code(around=WHOLE, before=("y",), values=values, whole=False, words=fix)


def is_same_slip(one: Code, other: Code) -> bool:
    """Tell whether the JAX side has one value in the place of another at two places: a variable that it did not set."""
    names = {WHOLE, "y"}
    both = names <= one.values.keys() and names <= other.values.keys()
    return both and all(set(one.values[name]) & set(other.values[name]) for name in names)


def reordered(function: str, order: tuple[int, ...]) -> Code | None:
    """Write parts that are joined in torch's order, where the JAX side joins the parts of that order in another.

    Args:
        function: Of JAX: "jnp.concatenate".
        order: Which of torch's parts stands at each place on the JAX side.

    """
    if len(order) > len(_PARTS):
        return None
    theirs = [_PARTS[number] for number in order]
    ours = _PARTS[: len(order)]
    return Code(around=f"{function}([{', '.join(ours)}], ...)", before=(f"{function}([{', '.join(theirs)}], ...)",))


_PARTS = "abcdef"
