"""Run a traced program and read the values of its named operations: see `labels.py`."""

import contextlib
import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from compare.jax_side.calls import Calls, Turns, Value
from compare.jax_side.choices import Choices
from compare.jax_side.computed import named_in, roots_of
from compare.jax_side.jaxpr import Interpreter
from compare.jax_side.labels import LOOK, Label
from compare.jax_side.lift import Lifter, Tables
from compare.jax_side.primitives import NAME, Scan, is_literal
from compare.jax_side.program_state import Leaf
from compare.jax_side.recomputed import is_again
from compare.jax_side.stacks import Stacks, apart_from_stacks
from compare.jax_side.successors import remembered_names, succeeded
from compare.step.observation import Port


class Key(NamedTuple):
    """What a value from within a program is."""

    what: str
    """As in a label."""
    path: str
    """The module's in the state."""
    leaf: str
    axes: int
    """How many axes it has in one call."""
    numbers: tuple[int, ...] = (0,)
    """The numbers of the calls that it is of, which are along the axes before these: see `Calls`."""


Shown = dict[Key, tuple[Any, Any]]
"""One value from within a program, and whether it was computed at all, which in a branch that was not taken it was
not."""


class Instead(NamedTuple):
    """Values that are put in the place of what a program computes, each with whether it is to be used.

    The derivative is always that of what was computed: the gradients of parameters before a place then differ only by
    what is different after it. For the program that is run was differentiated before.
    """

    ports: Mapping[Port, tuple[Any, Any]] = {}
    """What modules take and give. Of these it is said twice: for the module, and for all that comes after it."""
    gradients: Mapping[str, tuple[Any, Any]] = {}
    """Those that optimizers are given, by name."""


class Watch:
    """What the named operations of one program show, read while the program is run.

    Args:
        leaves: What the arrays of the state are.
        values: The arrays, as the program takes them.
        given: What is put in the place of what the program computes.
        stacks: The stacks of layers, and which axes of the program are over these.
        outermost: See `CommonRun.outermost`.

    """

    def __init__(
        self,
        leaves: Sequence[Leaf],
        values: Sequence[Any],
        given: Instead | None = None,
        stacks: Stacks | None = None,
        outermost: Collection[str] = (),
    ) -> None:
        # By identity, because two parameters may have equal initial values. A parameter is still the array of the state
        # that the run put in: jit and grad hand it on as it is.
        self._names = {id(array): leaf.name for leaf, array in zip(leaves, values, strict=True)}
        self._remembered = remembered_names(leaves)
        self._kept = list(values)  # so that no other array gets one of their ids
        self._roots: dict[str, str] = {}
        """The path in the state of what a number stands for, at this place of the program."""
        self.kinds: dict[str, str] = {}
        """The class of each module that ran, by path, in order of execution."""
        self.named_as: dict[str, tuple[str, str]] = {}
        """The root and the path in the names of each."""
        self.unplaced = False
        """Whether a module ran with parameters that are not known to be those of the state."""
        self._given = given or Instead()
        self._stacks = stacks or Stacks({}, (), None)
        self._outermost = apart_from_stacks(outermost, self._stacks.layers)
        self.calls = Calls(self._stacks.layers)
        self.unshown = False
        """Whether nothing is shown of what runs, and nothing put in its place.

        The backward pass of a checkpoint computes again what was shown. Nothing that is named within a while_loop can
        leave it.
        """

    @property
    def gives(self) -> bool:
        """Whether anything is put in the place of what the program computes."""
        return bool(self._given.ports or self._given.gradients)

    def instead(self, seen: "Shown | None", value: Any) -> tuple[Any, Any]:
        """Return the value with which a module or an optimizer continues, and that with which the program does.

        Either is the given one, if there is one, or its own.
        """
        import jax.numpy as jnp

        for key in seen or {}:
            given = [self._given_for(key, number) for number in key.numbers]
            if not any(each is not None for each in given):
                return value, value
            layers = value.ndim > key.axes
            own = value.shape[layers:]
            others = [jnp.zeros(own) if each is None else jnp.broadcast_to(jnp.asarray(each[0]), own) for each in given]
            chosen = [jnp.zeros(2, bool) if each is None else jnp.broadcast_to(each[1], 2) for each in given]
            lengths = self.calls.lengths
            shape = (*lengths, value.shape[0]) if layers else lengths
            others = self.calls.here(jnp.stack(others).reshape(*shape, *own)).astype(value.dtype)
            masks = jnp.moveaxis(self.calls.here(jnp.stack(chosen).reshape(*shape, 2)), -1, 0)
            masks = jnp.expand_dims(masks, tuple(range(masks.ndim, masks.ndim + len(own))))
            here = jnp.where(masks[0], others, value)
            return here, jnp.where(masks[1], others, value) if key.what == "input" else value
        return value, value

    def _given_for(self, key: Key, number: int) -> tuple[Any, Any] | None:
        if key.what == "gradient":
            return self._given.gradients.get(key.path) if number == 0 else None
        return self._given.ports.get(Port(key.path, number, key.what, key.leaf))

    def scan(self, eqn: Any, args: Sequence[Any]) -> contextlib.AbstractContextManager[None]:
        """Return the context in which a scan runs."""
        loop, names = Scan.of(eqn), [self._names.get(id(array)) for array in args]
        roots = self._roots | roots_of(loop.program, names, self._remembered)
        return self.calls.scan(Turns(loop.length, loop.reverse), named_in(loop.program, roots, self._outermost))

    def follow(self, eqn: Any, args: Sequence[Any], results: Sequence[Any]) -> None:
        """Note where the result of an operation takes the place of a parameter."""
        names = [self._names.get(id(array)) for array in args]
        if (name := succeeded(eqn, names, self._remembered)) is not None:
            self._name(name, results[0])

    def hand_on(self, values: Sequence[Any], inside: Sequence[Any]) -> None:
        """Note that what a program takes or gives is, within it or outside of it, another array."""
        for value, other in zip(values, inside, strict=True):
            if (name := self._names.get(id(value))) is not None:
                self._name(name, other)

    def _name(self, name: str, value: Any) -> None:
        self._names[id(value)] = name
        self._kept.append(value)

    def see(self, text: str, value: Any) -> "Shown | None":
        """Return what a named operation shows; None if nothing is to be shown."""
        label = Label.of(text)
        if label is None:
            return None
        if label.what == "parameter":
            if (root := label.root_in(self._names.get(id(value), ""))) is not None:
                self._roots[label.root] = root
            return None
        self.unplaced |= bool(label.root) and label.root not in self._roots
        if (path := label.place(self._roots, self._outermost)) is None:
            return None
        if label.what in ("input", "output"):
            self.kinds.setdefault(path, label.kind)
            self.named_as[path] = label.root, label.path
        if self.unshown:
            return None
        if label.what == LOOK:
            return {Key(LOOK, label.path, "", value.ndim): (value, True)}
        if label.what == "gradient":
            path = "/".join(filter(None, (path, label.inner.removesuffix("/value"))))
            return self._shown("gradient", path, "", value)
        return self._shown(label.what, path, label.leaf, value, of_layers=self._stacks.are_in_front(label, path, value))

    def _shown(self, what: str, path: str, leaf: str, value: Any, *, of_layers: bool = False) -> "Shown":
        numbers = self.calls.numbers((what, path, leaf), value.shape[0] if of_layers else 1)
        return {Key(what, path, leaf, value.ndim - of_layers, tuple(numbers.ravel().tolist())): (value, True)}


class _Watching(Interpreter):
    """Reads named operations as it runs a program."""

    watch: Watch

    def operation(self, eqn: Any, args: list[Any], given: Sequence[Any]) -> list[Any]:
        if eqn.primitive.name == NAME:
            if (seen := self.watch.see(eqn.params["name"], args[0])) is not None:
                self.shown.append(seen)
            given, onward = self.watch.instead(seen, args[0])
            if onward is not args[0] and not is_literal(eqn.invars[0]):
                self.renewed = {eqn.invars[0]: onward}
            return [given]
        results = super().operation(eqn, args, given)
        self.watch.follow(eqn, args, results)
        return results

    def handed_on(self, values: Sequence[Any], inside: Sequence[Any]) -> None:
        self.watch.hand_on(values, inside)

    def checkpoint(self, eqn: Any, args: list[Any], given: Sequence[Any]) -> list[Any]:
        """Run a checkpoint in place; what its backward pass computes again is not shown again."""
        with self._hidden() if is_again(eqn) else contextlib.nullcontext():
            return super().checkpoint(eqn, args, given)

    def call(self, eqn: Any, args: list[Any], given: Sequence[Any]) -> list[Any]:
        with self._hidden() if is_again(eqn) else contextlib.nullcontext():
            return super().call(eqn, args, given)

    @contextlib.contextmanager
    def _hidden(self) -> Iterator[None]:
        before, self.watch.unshown = self.watch.unshown, True
        try:
            yield
        finally:
            self.watch.unshown = before

    def unshown(self, program: Any, args: Sequence[Any]) -> list[Any]:
        with self._hidden():
            return super().unshown(program, args)

    def branch(self, number: int, before: dict[int, Any]) -> contextlib.AbstractContextManager[None]:
        return self.watch.calls.branch(number, before)

    def scan(self, eqn: Any, args: list[Any], given: Sequence[Any]) -> list[Any]:
        with self.watch.scan(eqn, args):
            return super().scan(eqn, args, given)

    def numbered(self, loop: Scan) -> Any:
        import jax.numpy as jnp

        return jnp.arange(loop.length) if self.watch.gives else None

    def iteration(self, number: Any) -> contextlib.AbstractContextManager[None]:
        return self.watch.calls.iteration(number)


class Watcher(_Watching, Interpreter):
    """Runs a program as it is, and reads what is named."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch


class LiftingWatcher(_Watching, Lifter):
    """Runs a program in float64, and reads what is named."""

    def __init__(
        self, watch: Watch, pinned: list[str], tables: Tables | None = None, choices: Choices | None = None
    ) -> None:
        Lifter.__init__(self, pinned, tables, choices)
        self.watch = watch


class Seen(NamedTuple):
    """What a step shows from inside."""

    forward: dict[Port, Any]
    gradients: dict[str, Any]


def sorted_out(shown: Sequence[Shown]) -> Seen:
    """Number the calls of each module and the gradients of each parameter, in order of execution.

    What was shown within a scan has more axes than it had there, and what was shown within a map over the layers of a
    stack has more than each layer gives: each iteration, or layer, is a call. A call in a branch that was not taken is
    none.
    """
    calls: dict[Value, list[tuple[int, Any]]] = {}
    for key, (value, computed) in (item for each in shown for item in each.items()):
        if key.what == LOOK:
            continue
        # A scan stacks what its iterations show along a new first axis.
        single = value.reshape((-1, *value.shape[value.ndim - key.axes :])) if value.ndim > key.axes else [value]
        known = np.ravel(np.asarray(computed))
        known = known if len(known) == len(single) else np.repeat(known, len(single) // len(known))
        numbered = zip(key.numbers, single, known, strict=True)
        calls.setdefault(key[:3], []).extend((number, array) for number, array, is_known in numbered if is_known)
    forward: dict[Port, Any] = {}
    gradients: dict[str, Any] = {}
    for (what, path, leaf), made in calls.items():
        for number, (_, array) in enumerate(sorted(made, key=operator.itemgetter(0))):
            if what == "gradient":
                gradients[path if not number else f"{path}#{number + 1}"] = array
            else:
                forward[Port(path, number, what, leaf)] = array
    return Seen(forward, gradients)
