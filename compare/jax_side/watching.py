"""Run a traced program and read the values of its named operations: see `labels.py`."""

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from compare.jax_side.choices import Choices
from compare.jax_side.jaxpr import Interpreter
from compare.jax_side.labels import LOOK, Label
from compare.jax_side.lift import Lifter, Tables
from compare.jax_side.primitives import NAME, Program, programs
from compare.jax_side.program_state import Leaf
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
    of_layers: bool = False
    """Whether an axis over the layers of a stack comes before these; each layer is a call."""


Shown = dict[Key, tuple[Any, Any]]
"""One value from within a program, and whether it was computed at all, which in a branch that was not taken it was
not."""


class Instead(NamedTuple):
    """Values that are put in the place of what a program computes, each with whether it is to be used.

    The derivative is always that of what was computed: the gradients of parameters before a place then differ only by
    what is different after it. For the program that is run was differentiated before.
    """

    ports: Mapping[Port, tuple[Any, Any]] = {}
    """What modules take and give."""
    gradients: Mapping[str, tuple[Any, Any]] = {}
    """Those that optimizers are given, by name."""


class Watch:
    """What the named operations of one program show, read while the program is run.

    Args:
        leaves: What the arrays of the state are.
        values: The arrays, as the program takes them.
        given: What is put in the place of what the program computes.
        stacks: See `CommonRun.stacks`.
        mapped: See `mapped_outputs`.

    """

    def __init__(
        self,
        leaves: Sequence[Leaf],
        values: Sequence[Any],
        given: Instead | None = None,
        stacks: Mapping[str, int] | None = None,
        mapped: Mapping[tuple[str, str], set[tuple[int, ...]]] | None = None,
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
        self._calls: Counter[tuple[str, str, str]] = Counter()
        self._stacks, self._mapped = stacks or {}, mapped or {}

    def instead(self, seen: "Shown | None", value: Any) -> Any:
        """Return the value with which the program continues: the given one, if there is one, or its own."""
        import jax.numpy as jnp

        for key in seen or {}:
            if not key.of_layers:
                return self._chosen(key, value)
            layers = list(value)
            chosen = [self._chosen(key, layer) for layer in layers]
            return value if all(map(operator.is_, chosen, layers)) else jnp.stack(chosen)
        return value

    def _chosen(self, key: Key, value: Any) -> Any:
        """Return the value of one call: the given one, if there is one, or its own."""
        import jax.numpy as jnp

        number = self._calls[key[:3]]
        self._calls[key[:3]] += 1
        if key.what == "gradient":
            given = self._given.gradients.get(key.path) if number == 0 else None
        else:
            given = self._given.ports.get(Port(key.path, number, key.what, key.leaf))
        if given is None:
            return value
        other, chosen = given
        return jnp.where(chosen, jnp.broadcast_to(jnp.asarray(other).astype(value.dtype), value.shape), value)

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
        is_placed = not label.root or label.root in self._roots
        self.unplaced |= not is_placed
        path = "/".join(filter(None, (self._roots.get(label.root, ""), label.path)))
        if not is_placed and not path:
            return None
        if label.what == "gradient":
            inner = label.inner.removesuffix("/value")
            return {Key("gradient", "/".join(filter(None, (path, inner))), "", value.ndim): (value, True)}
        if label.what == LOOK:
            return {Key(LOOK, label.path, "", value.ndim): (value, True)}
        self.kinds.setdefault(path, label.kind)
        self.named_as[path] = label.root, label.path
        of_layers = self._is_of_layers(label, path, value)
        return {Key(label.what, path, label.leaf, value.ndim - of_layers, of_layers): (value, True)}

    def _is_of_layers(self, label: Label, path: str, value: Any) -> bool:
        """Tell whether the first axis of a value is one that `jax.vmap` has mapped over the layers of a stack.

        Only the sizes of mapped axes are known. A module's outputs are mapped over the layers and over the examples;
        an input may be mapped over one of the two. So the outputs decide: the first of their mapped axes, and no other
        one, must have as many elements as there are layers.
        """
        layers, outputs = self._stacks.get(path, 0), self._mapped.get((label.root, label.path), set())
        decided = all(sizes[:1] == (layers,) and sizes.count(layers) == 1 for sizes in outputs)
        return decided and _mapped_axes(label, value)[:1] == (layers,)


class _Watching(Interpreter):
    """Reads named operations as it runs a program."""

    watch: Watch

    def operation(self, eqn: Any, args: list[Any], given: Sequence[Any]) -> list[Any]:
        if eqn.primitive.name == NAME:
            if (seen := self.watch.see(eqn.params["name"], args[0])) is not None:
                self.shown.append(seen)
            return [self.watch.instead(seen, args[0])]
        results = super().operation(eqn, args, given)
        self.watch.follow(eqn, args, results)
        return results

    def handed_on(self, values: Sequence[Any], inside: Sequence[Any]) -> None:
        self.watch.hand_on(values, inside)

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

    def __init__(
        self, watch: Watch, pinned: list[str], tables: Tables | None = None, choices: Choices | None = None
    ) -> None:
        Lifter.__init__(self, pinned, tables, choices)
        self.watch = watch


def apart_from(stacks: Mapping[str, int], batch: Any) -> dict[str, int]:
    """Leave out the stacks with as many layers as a batch has examples or micro-batches.

    A mapped axis of that size may be either. Examples and micro-batches are along the first two axes of a batch, but
    for its last axis.
    """
    import jax

    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(batch)]
    sizes = {size for shape in shapes for size in (shape[:1] if len(shape) < 3 else shape[:2])}
    return {path: layers for path, layers in stacks.items() if layers not in sizes}


def mapped_outputs(program: Any) -> dict[tuple[str, str], set[tuple[int, ...]]]:
    """Give the sizes of the axes that are mapped of the outputs of modules, by the root and the path in their names."""
    found: dict[tuple[str, str], set[tuple[int, ...]]] = {}
    for eqn in Program.of(program).equations:
        label = Label.of(eqn.params["name"]) if eqn.primitive.name == NAME else None
        if label is not None and label.what == "output":
            found.setdefault((label.root, label.path), set()).add(_mapped_axes(label, eqn.outvars[0].aval))
        for nested in programs(eqn):
            for key, sizes in mapped_outputs(nested).items():
                found.setdefault(key, set()).update(sizes)
    return found


def _mapped_axes(label: Label, value: Any) -> tuple[int, ...]:
    sizes: tuple[int, ...] = value.shape[: int(label.mapped)]
    return sizes


class Seen(NamedTuple):
    """What a step shows from inside."""

    forward: dict[Port, Any]
    gradients: dict[str, Any]
    repeated: frozenset[Port] = frozenset()
    """What modules take and give in a scan, where each iteration is a call."""


def sorted_out(shown: Sequence[Shown]) -> Seen:
    """Number the calls of each module and the gradients of each parameter, in order of execution.

    What was shown within a scan has more axes than it had there, and what was shown within a map over the layers of a
    stack has more than each layer gives: each iteration, or layer, is a call.
    """
    calls: Counter[tuple[str, str, str]] = Counter()
    forward: dict[Port, Any] = {}
    gradients: dict[str, Any] = {}
    repeated: set[Port] = set()
    for key, (value, computed) in (item for each in shown for item in each.items()):
        what, path, leaf, axes, of_layers = key
        if what == LOOK:
            continue
        # A scan stacks what its iterations show along a new first axis.
        single = value.reshape((-1, *value.shape[value.ndim - axes :])) if value.ndim > axes else [value]
        known = np.ravel(np.asarray(computed))
        known = known if len(known) == len(single) else np.repeat(known, len(single) // len(known))
        for array, is_known in zip(single, known, strict=True):
            if not is_known:
                continue
            number = calls[key[:3]]
            calls[key[:3]] += 1
            if what == "gradient":
                gradients[path if not number else f"{path}#{number + 1}"] = array
            else:
                forward[Port(path, number, what, leaf)] = array
                repeated |= {Port(path, number, what, leaf)} if value.ndim > axes + of_layers else set()
    return Seen(forward, gradients, frozenset(repeated))
