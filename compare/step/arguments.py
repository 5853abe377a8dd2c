"""What a module takes, the arguments of torch's `forward` and of the JAX side's `__call__`, and its settings."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from compare.step.observation import Port

Names = Mapping[str, Sequence[str]]
"""For each module, by path, the names of its positional arguments."""


def positional(function: Callable[..., Any], skipped: int = 0) -> tuple[str, ...]:
    """Name the positional arguments of a function, without the first `skipped`; none where they are not known."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return ()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(each.name for each in parameters if each.kind in kinds)[skipped:]


def argument(port: Port, names: Names) -> tuple[str, str]:
    """Name the argument that a port is, and the place within it: ("x", "") or ("states", "0"); "" if not known.

    A record calls an input "0.1" if it is the second positional argument, and "1.mask" if it is given by name.
    """
    # Inputs are recorded as the pair (args, kwargs), so that the first key is 0 or 1.
    how, _, rest = port.leaf.partition(".")
    first, _, within = rest.partition(".")
    if how == "1":
        return first, within
    known = names.get(port.path, ())
    return (known[int(first)] if first.isdigit() and int(first) < len(known) else ""), within


def settings(module: object) -> tuple[tuple[str, str], ...]:
    """Give the attributes of a module that are plain values, as Python writes them: (("epsilon", "1e-06"),)."""
    plain = {name: value for name, value in vars(module).items() if isinstance(value, bool | int | float | str)}
    meant = (name for name in plain if not name.startswith("_") and name not in ("name", "training"))
    return tuple((name, repr(plain[name])) for name in meant)
