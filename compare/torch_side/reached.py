"""Finds parts of torch's program that the data never reaches: bounds, masks, ignored labels."""

import operator
import os
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from compare.step.places import users_line

_IGNORED, _ALWAYS_IGNORED = 4, -100
"""The position of `ignore_index` among the arguments of aten's nll_loss, and its default."""

_WRAPPERS = frozenset({"hardtanh", "relu6", "threshold", "nan_to_num", "clamp", "clip", "where", "masked_fill"})
_WRAPPERS |= {"binary_cross_entropy", "embedding", "_no_grad_embedding_renorm_"}
_WRAPPERS |= {"relu", "leaky_relu", "elu", "softshrink", "hardshrink"}
_WRAPPERS |= {"kl_div", "poisson_nll_loss", "gaussian_nll_loss"}
_WRAPPERS |= {"hardsigmoid", "hardswish", "softplus", "_threshold"}
_WRAPPERS |= {"margin_ranking_loss", "hinge_embedding_loss", "triplet_margin_loss", "cosine_embedding_loss"}
_WRAPPERS |= {"huber_loss", "smooth_l1_loss", "forward", "_call_impl", "_wrapped_call_impl", "inner"}
"""Functions of torch's in Python that do what their name says, and nothing beside; and those by which a module of
torch's, such as `ReLU6`, hands on its input to one of them. A module with hooks, as in a check, calls `inner`."""


_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")

_REFUSING = frozenset({"gaussian_nll_loss"})
"""Of these, what compares its arguments to refuse some."""


class Reached:
    """Notes for each such place whether any data has reached it."""

    def __init__(self) -> None:
        self.found: dict[str, bool] = {}

    def look(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look at one operation of aten, by its name, before it runs: it may write to its arguments."""
        if name.startswith("nll_loss") and name.endswith("forward") and len(args) > _IGNORED:
            self._labels(args)
        elif name == "embedding" and len(args) > 2 and args[2] >= 0:
            met = (args[1] == args[2]).any()
            self._note(f"padding: no index is {args[2]}, whose row torch's embedding does not train", met)
        elif name == "clamp" and args[0].ndim == 0 and _is_called_in("clip_grad.py"):
            self._note("clipping by norm: no gradient's norm reaches torch's limit", args[0] < 1)
        elif name in _CLIPPED_LISTS and _is_called_in("clip_grad.py"):
            beyond = operator.lt if "min" in name else operator.gt
            met = any(beyond(each, args[1]).any() for each in args[0])
            self._note("clipping by value: no gradient reaches torch's limit", met)
        elif name == "binary_cross_entropy_with_logits" and len(args) > 3 and args[3] is not None:
            self._weights_of_positives(args[1], args[3])
        elif (plain := name.rstrip("_")) in _CHOICES and (place := _users_call(guards=plain in _COMPARISONS)):
            what, flags = _CHOICES[plain]
            for number, flag in enumerate(flags(args, kwargs)):
                self._note(f"torch's {plain} at {place}: {what[number]}", flag)

    def _labels(self, args: tuple[Any, ...]) -> None:
        labels, weights, ignored = args[1], args[2], args[_IGNORED]
        # Torch ignores -100 in every loss. It is meant where labels are of tokens or points, many in an example.
        if ignored != _ALWAYS_IGNORED or labels.ndim > 1:
            what = f"ignored labels: no target is {ignored}, which torch's loss ignores"
            self._note(what, (labels == ignored).any())
        if weights is not None:
            present = weights[labels[(labels >= 0) & (labels != ignored)].unique()]
            for weight in weights.unique()[:_FEW].tolist():
                what = f"class weights: no target has a class of weight {weight:g} in torch's loss"
                self._note(what, (present == weight).any())

    def _weights_of_positives(self, targets: Any, weights: Any) -> None:
        for weight in weights.unique()[:_FEW].tolist():
            if weight != 1:
                what = f"weights of positives: no target is positive where pos_weight is {weight:g} in torch's loss"
                self._note(what, (targets * (weights == weight)).any())

    def _note(self, what: str, reached: Any) -> None:
        self.found[what] = self.found.get(what, False) or bool(reached)


_CLIPPED_LISTS = frozenset({"_foreach_clamp_min_", "_foreach_clamp_max_"})
"""Operations of aten by which `clip_grad_value_` clips."""

_FEW = 3
"""Weights of classes that are looked at."""


def _bounds(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    low, high = (*args[1:], *kwargs.values(), None, None)[:2]
    low, high = kwargs.get("min", low), kwargs.get("max", high if "max" not in kwargs else None)
    yield True if low is None else (args[0] < low).any()
    yield True if high is None else (args[0] > high).any()


def _condition(args: tuple[Any, ...], _: dict[str, Any]) -> Iterator[Any]:
    yield args[0].any()
    yield (~args[0].bool()).any()


def _compared(name: str) -> Any:
    """Tell whether elements that are compared with a number are all on one side of it, as tokens that are no padding.

    A comparison of two tensors is most often a measure, such as an accuracy, and not a mask.
    """

    def flags(args: tuple[Any, ...], _: dict[str, Any]) -> Iterator[Any]:
        if args[0].ndim and isinstance(args[1], (int, float)):
            met = getattr(operator, name)(args[0], args[1])
            yield met.any()
            yield (~met).any()

    return flags


def _smaller(args: tuple[Any, ...], _: dict[str, Any]) -> Iterator[Any]:
    yield (args[0] < args[1]).any()
    yield (args[1] < args[0]).any()


def _signs(args: tuple[Any, ...], _: dict[str, Any]) -> Iterator[Any]:
    yield (args[0] < 0).any()
    yield (args[0] > 0).any()


def _from(low: float, high: float) -> Any:
    """Tell whether elements are below and above what is linear or curved in the middle of a function."""

    def flags(args: tuple[Any, ...], _: dict[str, Any]) -> Iterator[Any]:
        yield (args[0] < low).any()
        yield (args[0] > high).any()

    return flags


def _beyond(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    """Tell whether elements are beyond the bound from which softplus is linear."""
    beta, bound = (*args[1:], 1, 20)[:2] if len(args) < 3 else args[1:3]
    bound = kwargs.get("threshold", bound)
    if bound < EXACT:
        yield (args[0] * kwargs.get("beta", beta) > bound).any()


EXACT = 20
"""Torch's own bound: from there on softplus is linear to float32's rounding."""


def _shrunk(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    most = kwargs.get("lambd", args[1] if len(args) > 1 else 0.5)
    yield (args[0].abs() <= most).any()
    yield (args[0].abs() > most).any()


def _errors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    """Tell whether errors are below the bound between the square and the straight part of a loss, and above it."""
    bound = kwargs.get("delta", kwargs.get("beta", args[3] if len(args) > 3 else 1.0))
    error = (args[0] - args[1]).abs()
    yield (error < bound).any()
    yield (error > bound).any()


def _certain(args: tuple[Any, ...], _: dict[str, Any]) -> Iterator[Any]:
    yield ((args[0] == 0) | (args[0] == 1)).any()


def _long_rows(args: tuple[Any, ...], _: dict[str, Any]) -> Iterator[Any]:
    rows, indices, most, order = args
    yield (rows[indices].norm(order, -1) > most).any()


_CHOICES: dict[str, Any] = {
    "binary_cross_entropy": (("no probability is 0 or 1, of which torch takes the logarithm as -100",), _certain),
    "embedding_renorm": (("no row that is looked up is longer than max_norm",), _long_rows),
    "huber_loss": (("no error is below its delta", "no error is above its delta"), _errors),
    "smooth_l1_loss": (("no error is below its beta", "no error is above its beta"), _errors),
    # As of two critics: a port with one of them alone is right as long as the other never decides.
    "minimum": (
        ("its first argument is never the smaller one", "its second argument is never the smaller one"),
        _smaller,
    ),
    "maximum": (
        ("its second argument is never the larger one", "its first argument is never the larger one"),
        _smaller,
    ),
    "clamp": (("no element is below its bound", "no element is above its bound"), _bounds),
    "hardtanh": (("no element is below its bound", "no element is above its bound"), _bounds),
    "clamp_min": (("no element is below its bound",), lambda args, _: [(args[0] < args[1]).any()]),
    "clamp_max": (("no element is above its bound",), lambda args, _: [(args[0] > args[1]).any()]),
    **dict.fromkeys(
        ("abs", "elu", "leaky_relu", "relu", "sign"), (("no element is negative", "no element is positive"), _signs)
    ),
    **dict.fromkeys(("hardsigmoid", "hardswish"), (("no element is below -3", "no element is above 3"), _from(-3, 3))),
    **dict.fromkeys(
        ("softshrink", "hardshrink"), (("no element is within its bounds", "no element is beyond its bounds"), _shrunk)
    ),
    "threshold": (("no element is below it",), lambda args, _: [(args[0] <= args[1]).any()]),
    "softplus": (("no element is beyond the bound from which it is linear",), _beyond),
    "xlogy": (("no element is 0, where torch's product is 0",), lambda args, _: [(args[0] == 0).any()]),
    "where": (("its condition is never true", "its condition is never false"), _condition),
    **{name: (("it is never true", "it is never false"), _compared(name)) for name in _COMPARISONS},
    "masked_fill": (("its mask hides nothing",), lambda args, _: [args[1].any()]),
    "nan_to_num": (("all elements are finite",), lambda args, _: [(~args[0].isfinite()).any()]),
}
"""Operations of aten that choose: what is to be said where one of their sides is never taken, and which were."""


def _is_called_in(file: str) -> bool:
    """Tell whether the operation that runs now is called in a file of torch's, such as that of `clip_grad_norm_`."""
    frame: FrameType | None = sys._getframe(1)
    while frame:
        if os.path.basename(frame.f_code.co_filename) == file and frame.f_code.co_filename.startswith(_library()):
            return True
        frame = frame.f_back
    return False


def _library() -> str:
    import torch

    return os.path.dirname(torch.__file__) + os.sep


def _users_call(*, guards: bool) -> str:
    """Name the user's line if it calls the operation that runs now itself, and not through a library; else nothing.

    `guards` tells whether the operation may only guard a function of torch's against arguments that it refuses.
    """
    library = _library()
    frame: FrameType | None = sys._getframe(1)
    while frame:
        code = frame.f_code
        refused = guards and code.co_name in _REFUSING
        if code.co_filename.startswith(library) and (refused or not _passes(code.co_filename, code.co_name)):
            return ""
        if not code.co_filename.startswith((library, _OWN)):
            return users_line([(code.co_filename, frame.f_lineno)], "torch")
        frame = frame.f_back
    return ""


def _passes(file: str, function: str) -> bool:
    """Return whether a function of torch only calls the function that the user calls."""
    return function in _WRAPPERS or file.endswith(_HANDING_ON)


_HANDING_ON = ("_python_dispatch.py", "_ops.py", "_compile.py", "eval_frame.py", os.path.join("torch", "_tensor.py"))
"""Files of torch's between the user's call and the operation."""

_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
