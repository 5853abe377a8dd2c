"""The user's function that `python -m compare check` calls for the two sides and the batches."""

import importlib
import inspect
from typing import Any

from compare.errors import InputError
from compare.step.user_code import raised_in

_WANTED = "(torch, jax, batches), or these and a dict of the other arguments of compare.check, or a dict of all of them"


def arguments_of(pair: str) -> dict[str, Any]:
    """Call the user's function, given as "package.module:function", and name the arguments that it returns.

    Raises:
        InputError: If there is no such function, if it or its module raises, or if it returns something else.

    """
    module, _, name = pair.partition(":")
    if not module or not name:
        raise InputError(f"give a function as package.module:function, not {pair!r}")
    function = getattr(_imported(module, pair), name, None)
    if not callable(function):
        raise InputError(f"{module} has no function {name!r}: is {pair!r} right?")
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise InputError(f"{pair} must be a function without arguments: {error}") from error
    try:
        found = function()
    except (Exception, SystemExit) as error:
        raise InputError(f"{pair} raised {told(error)}") from error
    return _named(found, pair)


def _imported(module: str, pair: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            raise InputError(f"no module {error.name!r} is found from here: is {pair!r} right?") from error
        raise InputError(f"importing {module} raised {told(error)}") from error
    except (Exception, SystemExit) as error:  # a script that parses its command line exits
        raise InputError(f"importing {module} raised {told(error)}") from error


def told(error: BaseException) -> str:
    """Name an error and the line of the user's that raised it, in place of a traceback."""
    where = raised_in(error)
    return f"{type(error).__name__}: {error}" + (f" ({where})" if where else "")


def _named(found: Any, pair: str) -> dict[str, Any]:
    """Give the arguments their names."""
    from compare.comparison.check import check

    known = list(inspect.signature(check).parameters)
    if isinstance(found, tuple | list) and len(found) in (3, 4):
        others = found[3] if len(found) == 4 else {}
        if not isinstance(others, dict):
            raise InputError(f"{pair} must return {_WANTED}, and the fourth is a {type(others).__name__}")
        found = dict(zip(known, found[:3], strict=False)) | others
    if not isinstance(found, dict):
        what = f"{len(found)} values" if isinstance(found, tuple | list) else f"{found!r:.100}"
        raise InputError(f"{pair} must return {_WANTED}, not {what}")
    if missing := [name for name in known[:3] if name not in found]:
        raise InputError(f"{pair} must return {_WANTED}: {', '.join(missing)} is missing")
    if unknown := [str(name) for name in found if name not in known]:
        raise InputError(f"{pair} returned {', '.join(unknown)}, which compare.check does not take: {', '.join(known)}")
    return found
