"""What modules take and give, and what optimizers are given, seen from inside the user's own step.

A tensor that is recorded while a step is traced cannot leave a nested jit, grad or scan. A name can: each tensor is
passed through `jax.ad_checkpoint.checkpoint_name`, an identity, and whoever runs the traced program reads the values
where the named operations stand. JAX may trace a function once and call it often: so nothing is counted while it is
traced, and the number of a call is that of the name's occurrence in the program.
"""

import contextlib
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from compare.jax_side.jaxpr import Interpreter
from compare.jax_side.lift import Lifter
from compare.jax_side.primitives import NAME, Cond
from compare.jax_side.record import leaves
from compare.step.observation import Port
from compare.step.user_code import passes_on

PATH = "netparity_path"
"""The attribute under which an nnx module keeps its path in the state; it goes with the module through `nnx.jit`."""


class Label(NamedTuple):
    """What a named tensor is; it is written into the program as text."""

    what: str
    """"input" or "output" of a module, "gradient" that an optimizer is given, or "parameter" that a program uses."""
    root: str
    """The path of the module's root in the state, or a number that stands for it: see `Watch`."""
    path: str
    leaf: str
    kind: str = ""
    """The class of the module."""

    def __str__(self) -> str:
        return "|".join(("netparity", *self))

    @classmethod
    def of(cls, text: str) -> "Label | None":
        """Read it from a name in a program; None if the name is the user's own."""
        first, *rest = text.split("|")
        return cls(*rest) if first == "netparity" and len(rest) == len(cls._fields) else None


def named(tree: Any, what: str, root: str, path: str = "", kind: str = "") -> Any:
    """Pass each numeric array of a pytree through a name."""
    import jax
    from jax.ad_checkpoint import checkpoint_name

    known = {id(array): leaf for leaf, array in leaves(tree)}

    def name(array: Any) -> Any:
        if id(array) not in known:
            return array
        return checkpoint_name(array, str(Label(what, root, path, known[id(array)], kind)))

    return jax.tree.map(name, tree)


@contextlib.contextmanager
def naming(objects: Mapping[str, Any]) -> Iterator[None]:
    """Name what modules and optimizers take and give, in everything that is traced while this lasts.

    Args:
        objects: The nnx objects of the state, by path.

    """
    from unittest import mock

    from flax import linen, nnx
    from flax.training.train_state import TrainState

    # A Linen module does not know its place in the state: each `apply` gets a number, and the parameters that it is
    # applied to, which are named too, tell the place when the program is run.
    numbers = map(str, itertools.count())
    with contextlib.ExitStack() as stack:
        for cls in _classes(objects):
            stack.enter_context(mock.patch.object(cls, "__call__", _named_call(cls.__call__)))
        stack.enter_context(mock.patch.object(nnx.Optimizer, "update", _named_update(nnx.Optimizer.update)))
        apply_gradients = _named_gradients(TrainState.apply_gradients, numbers)
        stack.enter_context(mock.patch.object(TrainState, "apply_gradients", apply_gradients))
        roots: list[str] = []
        stack.enter_context(mock.patch.object(linen.Module, "apply", _named_apply(linen.Module.apply, roots, numbers)))
        stack.enter_context(linen.intercept_methods(functools.partial(_linen_call, roots)))
        yield


def _classes(objects: Mapping[str, Any]) -> set[type]:
    """Tell each nnx module its path, and give the modules' classes."""
    from flax import nnx

    classes = set()
    for root, value in objects.items():
        if not isinstance(value, nnx.Module):
            continue
        for path, module in nnx.iter_modules(value):
            if callable(module) and PATH not in vars(module):
                setattr(module, PATH, "/".join(filter(None, [root, *map(str, path)])))
                classes.add(type(module))
            elif callable(module):
                classes.add(type(module))
    return classes


def _named_call(original: Callable[..., Any]) -> Callable[..., Any]:
    """Name what a module of nnx takes and gives: Python looks `__call__` up on the class."""
    inside: list[int] = []

    @functools.wraps(original)
    @passes_on
    def call(module: Any, *args: Any, **kwargs: Any) -> Any:
        path = vars(module).get(PATH)
        if path is None or id(module) in inside:  # a super().__call__() is part of the same call
            return original(module, *args, **kwargs)
        kind = type(module).__name__
        inside.append(id(module))
        try:
            args, kwargs = named((args, kwargs), "input", "", path, kind)
            return named(original(module, *args, **kwargs), "output", "", path, kind)
        finally:
            inside.pop()

    return call


def _named_update(original: Callable[..., Any]) -> Callable[..., Any]:
    """Name the gradients that an `nnx.Optimizer` is given."""

    @functools.wraps(original)
    @passes_on
    def update(optimizer: Any, model: Any, grads: Any, *args: Any, **kwargs: Any) -> Any:
        return original(optimizer, model, _named_gradient(model, grads), *args, **kwargs)

    return update


def _named_gradient(model: Any, grads: Any) -> Any:
    """Name each gradient by the path in the state of the innermost module that has one, and the path within it.

    The model may be a container of the state's modules that the step has made.
    """
    import jax
    from jax.ad_checkpoint import checkpoint_name

    def name(path: Any, gradient: Any) -> Any:
        keys = [getattr(key, "key", getattr(key, "idx", getattr(key, "name", None))) for key in path]
        inner, root, rest = model, vars(model).get(PATH), keys
        for at, key in enumerate(keys):
            inner = getattr(inner, key, None) if isinstance(key, str) else inner[key]
            if not hasattr(inner, "__dict__"):
                break
            if (own := vars(inner).get(PATH)) is not None:
                root, rest = own, keys[at + 1 :]
        if root is None:
            return gradient
        leaf = ".".join(str(key) for key in rest if key != "value")
        return checkpoint_name(gradient, str(Label("gradient", "", root, leaf)))

    return jax.tree_util.tree_map_with_path(name, grads)


def _named_gradients(original: Callable[..., Any], numbers: Iterator[str]) -> Callable[..., Any]:
    """Name the gradients that a Linen `TrainState` is given, and the parameters that tell which state it is."""

    @functools.wraps(original)
    @passes_on
    def apply_gradients(state: Any, *, grads: Any, **kwargs: Any) -> Any:
        number = next(numbers)
        state = state.replace(params=named(state.params, "parameter", number))
        return original(state, grads=named(grads, "gradient", number), **kwargs)

    return apply_gradients


def _named_apply(original: Callable[..., Any], roots: list[str], numbers: Iterator[str]) -> Callable[..., Any]:
    """Name the parameters that a Linen module is applied to: they tell which part of the state they are."""

    @functools.wraps(original)
    @passes_on
    def apply(module: Any, variables: Any, *args: Any, **kwargs: Any) -> Any:
        number = next(numbers)
        if isinstance(variables, Mapping) and "params" in variables:
            variables = {**variables, "params": named(variables["params"], "parameter", number)}
        roots.append(number)
        try:
            return original(module, variables, *args, **kwargs)
        finally:
            roots.pop()

    return apply


@passes_on
def _linen_call(roots: list[str], function: Any, args: Any, kwargs: Any, context: Any) -> Any:
    module = context.module
    if context.method_name != "__call__" or module.scope is None or not roots:
        return function(*args, **kwargs)
    path, kind = "/".join(module.path), type(module).__name__
    args, kwargs = named((args, kwargs), "input", roots[-1], path, kind)
    return named(function(*args, **kwargs), "output", roots[-1], path, kind)


Shown = dict[tuple[str, str, str, int], tuple[Any, Any]]
"""One value from within a program: what it is, the module's path, the leaf and the number of axes; and with the value
whether it was computed at all, which in a branch that was not taken it was not."""


class Watch:
    """What the named operations of one program show, read while the program is run.

    Args:
        origins: The arrays of the state by their names, as the program takes them.
        given: Gradients that optimizers are given in the place of those that the program computes, by name.

    """

    def __init__(self, origins: Sequence[tuple[str, Any]], given: Mapping[str, Any] | None = None) -> None:
        self._names = {id(array): name for name, array in origins}
        self._kept = [array for _, array in origins]  # so that no other array gets one of their ids
        self._roots: dict[str, str] = {}
        """The path in the state of what a number stands for, at this place of the program."""
        self.kinds: dict[str, str] = {}
        """The class of each module that ran, by path, in order of execution."""
        self._given = dict(given or {})

    def instead(self, seen: "Shown | None", value: Any) -> Any:
        """Give what the program goes on with: what is given in the place of a value, or the value."""
        for (what, path, _, _), _ in (seen or {}).items():
            if what == "gradient" and path in self._given:
                return self._given.pop(path).astype(value.dtype)
        return value

    def see(self, text: str, value: Any) -> "Shown | None":
        """Give what a named operation shows; None if nothing is to be shown."""
        label = Label.of(text)
        if label is None:
            return None
        if label.what == "parameter":
            name = self._names.get(id(value), "")
            inner = label.leaf.replace(".", "/")
            # The parameter is still the array of the state that the run put in: jit and grad hand it on as it is.
            if name.endswith(inner):
                self._roots[label.root] = name.removesuffix(inner).rstrip("/")
            return None
        root = self._roots.get(label.root, "") if label.root else ""
        path = "/".join(filter(None, (root, label.path)))
        if label.what == "gradient":
            inner = label.leaf.replace(".", "/").removesuffix("/value")
            return {("gradient", f"{path}/{inner}", "", value.ndim): (value, True)}
        self.kinds.setdefault(path, label.kind)
        return {(label.what, path, label.leaf, value.ndim): (value, True)}


class _Watching(Interpreter):
    """Reads named operations as it runs a program."""

    watch: Watch

    def operation(self, eqn: Any, args: list[Any], given: Sequence[Any]) -> list[Any]:
        if eqn.primitive.name == NAME:
            if (seen := self.watch.see(eqn.params["name"], args[0])) is not None:
                self.shown.append(seen)
            return [self.watch.instead(seen, args[0])]
        return super().operation(eqn, args, given)

    def cond(self, eqn: Any, args: list[Any], given: Sequence[Any]) -> list[Any]:
        """Build a conditional anew; what its branches show comes out with whether the branch was taken."""
        import jax
        import jax.numpy as jnp

        choice = Cond.of(eqn)
        if choice.platforms is not None:
            return super().cond(eqn, args, given)
        index, *rest = args

        def branch(number: int, *args: Any) -> tuple[list[Any], list[Shown]]:
            outputs, shown = self.enclosed(choice.branches[number], args)
            return self._carried(outputs, eqn.outvars), shown

        numbers = range(len(choice.branches))
        # All branches must give the same: each gives zeros for what the others show, marked as not computed.
        shapes = [jax.eval_shape(functools.partial(branch, number), *rest)[1] for number in numbers]
        empty = [jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape) for shape in shapes]

        def taken(number: int, *args: Any) -> Any:
            outputs, shown = branch(number, *args)
            arrays = jax.tree.map(jnp.asarray, shown)
            return outputs, [arrays if other == number else empty[other] for other in numbers]

        outputs, shown = jax.lax.switch(index, [functools.partial(taken, number) for number in numbers], *rest)
        self.shown += [item for each in shown for item in each]
        return list(outputs)

    def checkpoint(self, eqn: Any, args: list[Any], given: Sequence[Any]) -> list[Any]:
        """Run a checkpoint in place; what its backward pass computes again is not shown again."""
        if not eqn.params.get("differentiated"):
            return super().checkpoint(eqn, args, given)
        with self._aside():
            return super().checkpoint(eqn, args, given)


class Watcher(_Watching, Interpreter):
    """Runs a program as it is, and reads what is named."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch


class LiftingWatcher(_Watching, Lifter):
    """Runs a program in float64, and reads what is named."""

    def __init__(self, watch: Watch, pinned: list[str]) -> None:
        Lifter.__init__(self, pinned)
        self.watch = watch


class Seen(NamedTuple):
    """What a step shows from inside."""

    forward: dict[Port, Any]
    gradients: dict[str, Any]


def sorted_out(shown: Sequence[Shown]) -> Seen:
    """Number the calls of each module and the gradients of each parameter, in order of execution.

    What was shown within a scan or vmap has more axes than it had there: each iteration is a call.
    """
    calls: Counter[tuple[str, str, str]] = Counter()
    forward: dict[Port, Any] = {}
    gradients: dict[str, Any] = {}
    for (what, path, leaf, axes), (value, computed) in (item for each in shown for item in each.items()):
        # A scan puts an axis before those of each iteration, vmap likewise.
        single = value.reshape((-1, *value.shape[value.ndim - axes :])) if value.ndim > axes else [value]
        known = np.ravel(np.asarray(computed))
        known = known if len(known) == len(single) else np.repeat(known, len(single) // len(known))
        for array, is_known in zip(single, known, strict=True):
            if not is_known:
                continue
            number = calls[what, path, leaf]
            calls[what, path, leaf] += 1
            if what == "gradient":
                gradients[path if not number else f"{path}#{number + 1}"] = array
            else:
                forward[Port(path, number, what, leaf)] = array
    return Seen(forward, gradients)
