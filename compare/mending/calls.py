"""Arguments of a call in the user's file: set or added, under the name that the function has for them."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import libcst

from compare.mending.syntax import Edit, SourceFile, Unfit


def set_keywords(file: SourceFile, call: libcst.Call, function: Any, keywords: Mapping[str, str]) -> list[Edit]:
    """Set arguments of a call, wherever the call has them now.

    Args:
        file: The file that the call is in.
        call: The call.
        function: What is called, for the order of its parameters; None if that is not known.
        keywords: The new values, as source, by the names of the parameters.

    """
    order, edits, added = parameters(function), [], {}
    for name, value in keywords.items():
        at = position(call.args, order, name)
        if at is None:
            added[name] = value
        else:
            edits.append(file.exchanged(call.args[at].value, value))
    return [*edits, *([_added(file, call, added)] if added else [])]


def left_out(file: SourceFile, call: libcst.Call, function: Any, names: Iterable[str]) -> list[Edit]:
    """Take arguments out of a call, each with the comma before it."""
    order, edits = parameters(function), []
    for name in names:
        at = position(call.args, order, name)
        if at is None:
            continue
        start, end = file.range(call.args[at].value)[1], file.range(call.args[at])[1]
        if at:
            edits.append(Edit(file.file, file.range(call.args[at - 1].value)[1], start, ""))
        elif len(call.args) > 1:
            edits.append(Edit(file.file, file.range(call.args[0])[0], file.range(call.args[1])[0], ""))
        else:
            edits.append(Edit(file.file, file.range(call.args[0])[0], end, ""))
    return edits


def parameters(function: Any) -> list[str]:
    """Name a function's positional parameters in their order; of a class those of its constructor."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, parameter in _signature(function).items() if parameter.kind in kinds]


def accepts(function: Any, name: str) -> bool:
    """Return whether a function takes an argument of a name."""
    return name in _signature(function)


def _signature(function: Any) -> Mapping[str, inspect.Parameter]:
    if function is None:
        return {}
    try:
        # A class of nnx itself takes anything: what it means is its constructor's.
        found = inspect.signature(function.__init__ if inspect.isclass(function) else function).parameters
    except (TypeError, ValueError):
        return {}
    return dict(list(found.items())[inspect.isclass(function) :])


def position(arguments: Any, order: list[str], name: str) -> int | None:
    """Say which of a call's arguments is the one of a name; None if it has none."""
    for number, argument in enumerate(arguments):
        if argument.keyword is not None and argument.keyword.value == name:
            return number
    # Arguments by position come first. A parameter after them, or after a star, is not given by position.
    plain = 0
    while plain < len(arguments) and arguments[plain].keyword is None and not arguments[plain].star:
        plain += 1
    number = order.index(name) if name in order else plain
    return number if number < plain else None


def _added(file: SourceFile, call: libcst.Call, keywords: Mapping[str, str]) -> Edit:
    """Add keyword arguments, before the generators of random numbers, which people write last."""
    arguments = call.args
    if any(argument.star == "**" for argument in arguments):
        raise Unfit("the call takes keywords from a dict")
    texts = [f"{name}={value}" for name, value in keywords.items()]
    if not arguments:
        _, end = file.range(call)
        return Edit(file.file, end - 1, end - 1, ", ".join(texts))
    # In a call of several lines, a new argument stands on a line of its own, as the others do.
    starts, ends = zip(*map(file.range, arguments), strict=True)  # with the parentheses of a tuple
    between = file.text[ends[0] : starts[1]] if len(arguments) > 1 else ", "
    keyword = arguments[-1].keyword
    if keyword is not None and keyword.value in ("rngs", "key"):
        return Edit(file.file, starts[-1], starts[-1], "".join(text + between for text in texts))
    return Edit(file.file, ends[-1], ends[-1], "".join(between + text for text in texts))
