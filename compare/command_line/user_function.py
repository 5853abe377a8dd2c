"""The user's function that `netparity check` calls for the two sides and the batches."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from compare.errors import InputError
from compare.step.user_code import raised_in

_WANTED = (
    "(torch, jax, batches), or these three and a dict of the other arguments of compare.check, or a dict "
    "of all its arguments"
)


def arguments_of(pair: str) -> dict[str, Any]:
    """Call the user's function and name the arguments that it returns.

    Args:
        pair: The function, as "package.module:function" or "folder/file.py:function".

    Raises:
        InputError: If there is no such function, if it or its module raises, or if it returns something else.

    """
    from compare.jax_side import made as jax_made
    from compare.torch_side import made as torch_made

    with torch_made.noted(), jax_made.noted():  # for a report that names the lines
        return _called(pair)


def _called(pair: str) -> dict[str, Any]:
    module, _, name = pair.rpartition(":")
    if not module or not name:
        raise InputError(f"give a function as package.module:function or file.py:function, not {pair!r}")
    is_file = module.endswith(".py")
    imported = _loading(module, lambda: _of_file(Path(module)) if is_file else _of_name(module, pair))
    function = getattr(imported, name, None)
    if not callable(function):
        raise InputError(f"{module} has no function {name!r}.{_other(module, imported, name) or _defined(imported)}")
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise InputError(f"{pair} must be a function without arguments: {error}") from error
    try:
        found = function()
    except (Exception, SystemExit) as error:
        raise InputError(f"{pair} raised {told(error)}") from error
    return _named(found, pair)


def _loading(module: str, load: Callable[[], ModuleType]) -> ModuleType:
    """Import the user's code; what it raises becomes an error that names the line."""
    try:
        return load()
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # a script that parses its command line exits
        raise InputError(f"importing {module} raised {told(error)}") from error


def _of_name(module: str, pair: str) -> ModuleType:
    """Import a module, also from the working directory, which a console script does not search."""
    _search(Path.cwd())
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            raise InputError(f"no module {error.name!r} was found from here: is {pair!r} right?") from error
        raise


def _of_file(file: Path) -> ModuleType:
    """Import a file as the module that it is, from its folder; it may have the name of an installed package."""
    file = file.resolve()
    if not file.is_file():
        raise InputError(f"there is no file {file}")
    _search(file.parent)
    name, known = file.stem, sys.modules.get(file.stem)
    if known is not None:
        if getattr(known, "__file__", None) == str(file):
            return known
        name = f"{name}_py"  # such as compare.py: the package of that name stays
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _search(folder: Path) -> None:
    """Have modules of a folder found, before those that are installed."""
    if not {str(folder), ""} & set(sys.path):
        sys.path.insert(0, str(folder))


def _other(module: str, imported: ModuleType, name: str) -> str:
    """Say so where a file of this folder has the name of an installed module."""
    file = Path(f"{module}.py")
    if not file.is_file() or getattr(imported, "__file__", None) == str(file.resolve()):
        return ""
    return f" {module} is an installed module: for the file of this folder, write {file}:{name}"


def _defined(imported: ModuleType) -> str:
    """List the functions that a user's module defines and that need no argument: the pair is one of them."""
    own = [(name, value) for name, value in vars(imported).items() if inspect.isfunction(value)]
    fitting = [name for name, value in own if value.__module__ == imported.__name__ and not _needed(value)]
    return f" It has {', '.join(fitting)}" if fitting else ""


def _needed(function: Any) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [each.name for each in parameters if each.default is each.empty and each.kind not in variable]


def told(error: BaseException) -> str:
    """Name an error and the line of the user's that raised it, in place of a traceback."""
    where = raised_in(error)
    return f"{type(error).__name__}: {error}" + (f" ({where})" if where else "")


def _named(found: Any, pair: str) -> dict[str, Any]:
    """Name the arguments."""
    from compare.comparison.check import check

    known = list(inspect.signature(check).parameters)
    if isinstance(found, tuple | list) and len(found) in (3, 4):
        others = found[3] if len(found) == 4 else {}
        if not isinstance(others, dict):
            raise InputError(f"{pair} must return {_WANTED}, but the fourth value is a {type(others).__name__}")
        found = dict(zip(known, found[:3], strict=False)) | others
    if not isinstance(found, dict):
        what = f"{len(found)} values" if isinstance(found, tuple | list) else f"{found!r:.100}"
        raise InputError(f"{pair} must return {_WANTED}, not {what}")
    if missing := [name for name in known[:3] if name not in found]:
        raise InputError(f"{pair} must return {_WANTED}: {', '.join(missing)} is missing")
    if unknown := [str(name) for name in found if name not in known]:
        raise InputError(f"{pair} returned {', '.join(unknown)}, which compare.check does not take: {', '.join(known)}")
    return found
