"""Which operations of JAX a function needs: a program that has none of them cannot apply the function.

Many functions agree on a batch. For negative numbers, for example, the absolute value is a change of sign. The program
that JAX has traced tells which of the two the JAX side can have.
"""

import functools

from compare.jax_side.from_data import FromData

_BOUNDS = {"max", "min", "clamp", "select_n"}
_BOTH_BOUNDS = {"min", "clamp"}
_EXPONENTIAL = {"exp", "exp2", "expm1", "logistic", "tanh"}
_GAUSSIAN = {"erf", "erfc", *_EXPONENTIAL}
_LOGARITHM = {"log", "log1p"}
_ROOT = {"sqrt", "rsqrt"}
_PRODUCT = {"integer_pow", "square", "mul", "pow", "dot_general"}
_ORDER = {"sort", "top_k"}

_NEEDED: dict[str, set[str]] = {
    **dict.fromkeys(("relu", "leaky_relu"), _BOUNDS),
    **dict.fromkeys(("relu6", "hardswish", "hardsigmoid"), _BOTH_BOUNDS),
    **dict.fromkeys(("elu", "selu", "silu", "sigmoid", "tanh", "softmax", "exp", "exp2", "expm1"), _EXPONENTIAL),
    **dict.fromkeys(("gelu", "gelu with approximate=True"), _GAUSSIAN),
    **dict.fromkeys(("softplus", "logsigmoid", "log", "log1p", "log2", "log10", "log_softmax"), _LOGARITHM),
    "mish": {*_LOGARITHM, "tanh"},
    "logsumexp": {*_EXPONENTIAL, "logaddexp"},
    "sin": {"sin", "cos"},
    "cos": {"sin", "cos"},
    "abs": {"abs", "sign"},
    "a square": _PRODUCT,
    "square": _PRODUCT,
    **dict.fromkeys(("a square root", "sqrt", "rsqrt", "L2 normalization", "layer_norm without parameters"), _ROOT),
    "max": {"reduce_max", "argmax", "max", "reduce_window_max", "cummax", *_ORDER},
    "min": {"reduce_min", "argmin", "min", "reduce_window_min", "cummin", *_ORDER},
    "the Euclidean norm": _ROOT,
    "the sum of squares": _PRODUCT,
    "the mean of absolute values": {"abs", "sign"},
    "std": _ROOT,
    "var": _PRODUCT,
    "a reversal": {"rev", "gather", "scan"},
    "a shift": {"concatenate", "pad", "gather", "dynamic_slice", "dynamic_update_slice", "scatter", "scan", "rev"},
}
"""By the words for a function, or by those with which they begin: operations of which the program has at least one."""


def may_apply(words: str, theirs: FromData, shape: tuple[int, ...] | None = None) -> bool:
    """Tell whether the JAX side's program can apply a function; True if it was not read, or for any other function.

    Args:
        words: What the function is called.
        theirs: What is read from the program.
        shape: Of what the function gives; None if it is not known.

    """
    operations = theirs.operations_of(() if shape is None else shape)
    if operations is None:
        return True
    needed = _needed(words)
    return needed is None or not needed.isdisjoint(operations)


@functools.cache
def _needed(words: str) -> set[str] | None:
    beginning = max((each for each in _NEEDED if f"{words} ".startswith(f"{each} ")), key=len, default=None)
    return None if beginning is None else _NEEDED[beginning]
