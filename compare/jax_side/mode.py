"""Sets a JAX model's mode, training or evaluation, to torch's, if an argument or an attribute controls it."""

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

_TRAINING = {"train", "training"}

_EVALUATION = {
    *("deterministic", "eval", "evaluate", "evaluation", "evaluating"),
    *("infer", "inference", "predict", "test", "testing"),
}
"""Words in the names of arguments that choose the mode, as in `is_training` or `eval_mode`."""

_TRIED = 3
"""Arguments of other names that are tried, at most: each doubles the number of traces."""


def in_training(name: str) -> bool | None:
    """Return the value that an argument has in training, by its name; None if the name says nothing of the mode."""
    if name.startswith("use_running"):  # average, stats
        return False
    words = set(name.lower().split("_"))
    trains, evaluates = bool(words & _TRAINING), bool(words & _EVALUATION)
    return trains if trains != evaluates else None


def with_mode(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], training: bool
) -> dict[str, Any]:
    """Add the mode to a call's keyword arguments, if the function takes it and the batch does not give it."""
    names = (name for name in _free(function, args, kwargs) if in_training(name) is not None)
    return {**kwargs, **{name: in_training(name) == training for name in names}}


def attributes_of_mode(module: Any, training: bool) -> dict[str, bool]:
    """Give the attributes of a Linen module that choose its mode, as in `training: bool = True`, with their values."""
    fields = [field.name for field in dataclasses.fields(module) if field.init]
    known = {name: in_training(name) for name in fields if isinstance(getattr(module, name, None), bool)}
    return {name: value == training for name, value in known.items() if value is not None}


def by_effect(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    training: bool,
    effect: Callable[[dict[str, Any]], int],
) -> dict[str, Any]:
    """Find the mode among boolean arguments of any name, by what they change.

    A model in training updates its running statistics and draws random numbers, and in evaluation it does neither. So
    the values with the largest and the smallest effect are tried. An argument that changes nothing of this keeps its
    default.

    Args:
        function: The model.
        args: What the batch gives it.
        kwargs: What the batch gives it by name.
        training: Whether it is to be in training.
        effect: Tells how much the model updates and draws with some keyword arguments, by tracing it.

    """
    free = [name for name, parameter in _free(function, args, kwargs).items() if isinstance(parameter.default, bool)]
    if not free or len(free) > _TRIED:
        return {}
    defaults = {name: inspect.signature(function).parameters[name].default for name in free}
    usual = effect({**kwargs, **defaults})
    best, chosen = usual, defaults
    for values in itertools.product((False, True), repeat=len(free)):
        tried = dict(zip(free, values, strict=True))
        if tried == defaults:
            continue
        found = effect({**kwargs, **tried})
        # Strictly more or less: of equal values the default stays, which is the likeliest.
        if found > best if training else found < best:
            best, chosen = found, tried
    return {name: value for name, value in chosen.items() if value != defaults[name]} if best != usual else {}


def _free(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, inspect.Parameter]:
    """Return the arguments of a function that may be a mode and that a call does not give."""
    try:
        signature = inspect.signature(function)
        given = signature.bind_partial(*args, **kwargs).arguments
    except (TypeError, ValueError):  # a call that is refused elsewhere, or a function without a signature
        return {}
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: parameter
        for name, parameter in signature.parameters.items()
        if name not in given and parameter.kind in named and _may_be_mode(parameter)
    }


def _may_be_mode(parameter: inspect.Parameter) -> bool:
    if parameter.default is parameter.empty or parameter.default is None:
        return parameter.annotation is parameter.empty or "bool" in str(parameter.annotation)
    return isinstance(parameter.default, bool)


def mixed(modes: Iterable[bool]) -> bool:
    """Return whether some modules are in training and others in evaluation, as where a norm is frozen."""
    return len(set(modes)) > 1
