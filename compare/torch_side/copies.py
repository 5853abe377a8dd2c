"""A copy of a model with all that refers to it: hooks, the loss and the optimizer's function use the copy too.

`copy.deepcopy` copies modules, and neither the hooks of parameters nor functions. A function that a user gives often
refers to the original: `lambda params: SGD(model.parameters(), 0.1)`, a loss with a penalty on `model.parameters()`, a
hook that multiplies by `self.mask`. In a run on a copy, it would use weights that no step changes. So such a function
is made again, with the copy in the place of the original.
"""

import copy
import functools
import itertools
import types
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from compare.errors import InputError
from compare.step.user_code import call_user_code, of_a_library

if TYPE_CHECKING:
    import torch

_DEPTH = 5
"""How deep to search for the original in the objects that a function refers to: a list of parameters in a dict in a
closure."""

_ITEMS = 1000
"""How many items of a container to look at. What refers to a model is small, and data may be large."""

_LOOKED_AT = 20_000
"""The maximum number of objects to search that one function refers to."""

_WITHOUT_A_MODEL = ("builtins", "numpy", "jax", "jaxlib", "flax", "optax", "threading", "logging")
"""Packages whose objects do not refer to a torch model."""

_MODULE_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

_PARAMETER_HOOKS = (
    ("_backward_hooks", "register_hook"),
    ("_post_accumulate_grad_hooks", "register_post_accumulate_grad_hook"),
)


class Copies:
    """Copies of modules, and functions made again for them.

    Args:
        modules: Those to be copied, which may share parameters. Their hooks are kept.

    """

    def __init__(self, *modules: "torch.nn.Module") -> None:
        self._memo: dict[int, Any] = {}
        for module in (inner for outer in modules for inner in outer.modules()):
            # What a hook computes before each call, such as a pruned or normalized weight, torch refuses to copy.
            # So are activations of a call that was made before, which a module may keep.
            computed = (tensor for tensor in _tensors(vars(module)) if not tensor.is_leaf)
            self._memo |= {id(tensor): tensor.detach().clone() for tensor in computed}
        # One memo for all modules: a parameter that the model and the loss share is copied once.
        self.modules: list[torch.nn.Module] = [
            call_user_code("copying the torch model", functools.partial(copy.deepcopy, module, self._memo))
            for module in modules
        ]
        self._copies: dict[int, Any] = {}
        """What stands in the place of each original, by its identity."""
        self.unhooked: dict[int, torch.Tensor] = {}
        """The latest gradient of each parameter with hooks, before they change it, by the identity of the copy."""
        self._modules: dict[int, dict[str, Any]] = {}
        """The global variables of functions that are made again, by the identity of the originals' variables."""
        self._cells: dict[int, types.CellType] = {}
        """Likewise their closures' variables, which several functions may share."""
        for original, copied in zip(modules, self.modules, strict=True):
            # deepcopy keeps the order of registration, so that the n-th of the one is the n-th of the other.
            for parts in ("modules", "parameters", "buffers"):
                pairs = zip(getattr(original, parts)(), getattr(copied, parts)(), strict=True)
                self._copies |= {id(one): other for one, other in pairs}
        for original, copied in zip(modules, self.modules, strict=True):
            self._copy_hooks(original, copied)

    def _copy_hooks(self, original: "torch.nn.Module", copied: "torch.nn.Module") -> None:
        for (name, before), after in zip(original.named_parameters(), copied.parameters(), strict=True):
            hooks = [
                (register, self.of(hook, f"a hook of the torch model's parameter {name}"))
                for attribute, register in _PARAMETER_HOOKS
                for hook in (getattr(before, attribute, None) or {}).values()
            ]
            if hooks and after.requires_grad:
                # The comparison is of the gradients that the loss gives. Hooks run in the order in which they were
                # registered.
                after.register_hook(functools.partial(self.unhooked.__setitem__, id(after)))  # before the user's own
                for register, hook in hooks:
                    getattr(after, register)(hook)
        for path, module in copied.named_modules():
            where = f"of the torch model's module {path}" if path else "of the torch model"
            for attribute in _MODULE_HOOKS:
                of_module = getattr(module, attribute, {})
                for number, hook in list(of_module.items()):
                    of_module[number] = self.of(hook, f"a hook {where}")
            for attribute, value in list(vars(module).items()):
                if isinstance(value, types.FunctionType):  # such as a `forward` that was put in its place
                    vars(module)[attribute] = self.of(value, f"the function {attribute} {where}")

    def of(self, value: Any, what: str) -> Any:
        """Return a function, or anything else, with the copies in the place of the originals that it refers to.

        Raises:
            InputError: If it refers to an original by an object that cannot be copied; `what` names it.

        """
        if not self._refers(value, _DEPTH, set()):
            return value
        try:
            return self._replaced(value)
        except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError) as error:
            raise InputError(
                f"{what} refers to the original model, by an object that cannot be copied ({error}). Each run trains a "
                "copy of the model, which it would not use"
            ) from error

    def _refers(self, value: Any, depth: int, seen: set[int]) -> bool:
        """Return whether a value leads to one of the originals."""
        if id(value) in self._copies:
            return True
        if not depth or id(value) in seen or len(seen) > _LOOKED_AT:
            return False
        seen.add(id(value))
        return any(self._refers(part, depth - 1, seen) for part in _parts(value))

    def _replaced(self, value: Any) -> Any:
        if id(value) in self._copies:
            return self._copies[id(value)]
        if not self._refers(value, _DEPTH, set()):
            return value
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return types.MethodType(value.__func__, self._replaced(value.__self__))
        if isinstance(value, functools.partial):
            keywords = {name: self._replaced(argument) for name, argument in value.keywords.items()}
            return functools.partial(self._replaced(value.func), *map(self._replaced, value.args), **keywords)
        # With the memo of the modules: an object that holds the model gets its copy, and not another one.
        return copy.deepcopy(value, self._memo)

    def _function(self, function: types.FunctionType) -> Callable[..., Any]:
        """Make a function again, with other variables around it; it is registered first, since it may call itself."""
        used = _globals(function)
        of_module = function.__globals__
        if any(self._refers(value, _DEPTH, {id(function)}) for value in used.values()):
            # Functions of one module share the copied globals, so that one that calls another calls the copy.
            of_module = self._modules.setdefault(id(of_module), dict(of_module))
        before = function.__closure__ or ()
        # A variable that refers to no original stays shared with other functions: a loss that keeps its last value.
        cells = [
            self._cells.setdefault(id(cell), types.CellType())
            if any(self._refers(content, _DEPTH, set()) for content in _content(cell))
            else cell
            for cell in before
        ]
        made = types.FunctionType(function.__code__, of_module, function.__name__, None, tuple(cells))
        self._copies[id(function)] = made
        for new, old in zip(cells, before, strict=True):
            if new is not old:
                new.cell_contents = self._replaced(_content(old)[0])
        if of_module is not function.__globals__:
            of_module.update({name: self._replaced(value) for name, value in used.items()})
        made.__defaults__ = function.__defaults__ and tuple(map(self._replaced, function.__defaults__))
        made.__kwdefaults__ = {name: self._replaced(value) for name, value in (function.__kwdefaults__ or {}).items()}
        return functools.update_wrapper(made, function)


def in_plain_containers(model: "torch.nn.Module") -> list["torch.nn.Module"]:
    """List the modules that a model keeps in lists, tuples and dicts, where torch does not see them: `.to()` does not.

    A teacher is hidden so, or heads that were meant for a ModuleList. They compute in the precision of the others.
    """
    import torch

    known = set(model.modules())
    found: list[torch.nn.Module] = []
    for module in known:
        for value in vars(module).values():
            inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
            found += [each for each in inside if isinstance(each, torch.nn.Module) and each not in known]
    return found


def _content(cell: types.CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # a variable that has no value yet
        return []


def _parts(value: Any) -> Iterable[Any]:
    """List what a value refers to: what a function uses, what a container holds, an object's attributes."""
    if isinstance(value, types.FunctionType):
        around = [part for cell in value.__closure__ or () for part in _content(cell)]
        around += [] if of_a_library(value.__code__.co_filename) else _globals(value).values()
        return [*around, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, dict):
        return [*itertools.islice(value.keys(), _ITEMS), *itertools.islice(value.values(), _ITEMS)]
    if isinstance(value, list | tuple | set | frozenset):
        return list(itertools.islice(value, _ITEMS))
    if isinstance(value, type | types.ModuleType) or type(value).__module__.partition(".")[0] in _WITHOUT_A_MODEL:
        return []
    return list(getattr(value, "__dict__", {}).values())[:_ITEMS]


def _globals(function: types.FunctionType) -> dict[str, Any]:
    """Return the global variables that a function uses, itself or in a function inside it, by name."""

    def names(code: types.CodeType) -> set[str]:
        inner = [names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
        return set(code.co_names).union(*inner)

    known = function.__globals__
    return {name: known[name] for name in sorted(names(function.__code__)) if name in known}


def _tensors(tree: Any) -> Iterator["torch.Tensor"]:
    """Yield the tensors among a module's attributes, and in lists, tuples and dictionaries of these."""
    import torch

    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict | list | tuple):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors(value)
