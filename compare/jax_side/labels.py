"""Names within a traced program: what a named tensor is, and how a tensor gets its name.

A tensor that is recorded while a step is traced cannot leave a nested jit, grad or scan. A name can: each tensor is
passed through `jax.ad_checkpoint.checkpoint_name`, an identity. The interpreter of the traced program then reads the
values of the named operations. `naming.py` names tensors while a step is traced, and `watching.py` reads them while
the traced program is run.
"""

import functools
from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from compare.jax_side.state import is_equinox_state

LOOK = "look"
"""What is named because the step looks at it: see `unjitted.py`."""


class Label(NamedTuple):
    """What a named tensor is; it is written into the program as text."""

    what: str
    """"input" or "output" of a module, "gradient" that an optimizer is given, "parameter" that a program uses,
    or `LOOK`."""
    root: str
    """The path of the module's root in the state, or a number that stands for it: see `Watch`."""
    path: str
    leaf: str
    kind: str = ""
    """The class of the module."""
    mapped: str = "0"
    """How many axes `jax.vmap` has mapped; they are the first of the tensor: see `map_in_front`."""

    def __str__(self) -> str:
        return "|".join(("netparity", *self))

    @property
    def inner(self) -> str:
        """The leaf as the end of a path in the state: "dense/kernel" for "dense.kernel"."""
        return self.leaf.replace(".", "/")

    def root_in(self, name: str) -> str | None:
        """Give the root in the state of a parameter, of which the whole path is given; None if it is not this leaf."""
        return name.removesuffix(self.inner).rstrip("/") if name.endswith(self.inner) else None

    def place(self, roots: Mapping[str, str], outermost: Container[str] = ()) -> str | None:
        """Give the path of its module in the state.

        Args:
            roots: What the numbers stand for, as far as that is known.
            outermost: The paths of what is the whole model, which has a name of its own.

        Returns:
            None if nothing is known of the path, or the module is the whole model.

        """
        root = roots.get(self.root)
        if self.root and not self.path and (root is None or root in outermost):
            return None
        return "/".join(filter(None, (root, self.path)))

    @classmethod
    def of(cls, text: str) -> "Label | None":
        """Read it from a name in a program; None if the name is the user's own."""
        first, *rest = text.split("|")
        return cls(*rest) if first == "netparity" and len(rest) == len(cls._fields) else None


@functools.cache
def map_in_front() -> None:
    """Have `jax.vmap` move the axis that it maps to the front of each named array that is compared with torch's.

    An operation under `vmap` has the mapped axis wherever the operations before it have left it, and no name can tell.
    In front, the axes of nested maps stand as the axes of a batch do, the outermost first. All other names keep JAX's
    own rule, which leaves the axis where it is.
    """
    import jax
    from jax.ad_checkpoint import checkpoint_name
    from jax.interpreters import batching

    (eqn,) = jax.make_jaxpr(functools.partial(checkpoint_name, name=""))(0.0).eqns

    def rule(args: Sequence[Any], axes: Sequence[int], *, name: str) -> tuple[Any, int]:
        (array,), (axis,), label = args, axes, Label.of(name)
        if label is not None and label.what in ("input", "output", "gradient"):
            array, axis = jax.numpy.moveaxis(array, axis, 0), 0
            name = str(label._replace(mapped=str(int(label.mapped) + 1)))
        return eqn.primitive.bind(array, name=name), axis

    batching.primitive_batchers[eqn.primitive] = rule


def labelled(array: Any, label: Label) -> Any:
    """Pass an array through a name."""
    from jax.ad_checkpoint import checkpoint_name

    map_in_front()
    return checkpoint_name(array, str(label))


def named(tree: Any, what: str, root: str, path: str = "", kind: str = "") -> Any:
    """Pass each numeric array of a pytree through a name."""
    import jax

    def name(leaf_path: Any, array: Any) -> Any:
        # By its place: a cell gives one array as its new state and as its output.
        label = Label(what, root, path, _leaf_name(leaf_path), kind)
        return labelled(array, label) if _is_numeric(array) else array

    # An `eqx.nn.State` belongs to the whole model. It is no input or output of a single module.
    return jax.tree_util.tree_map_with_path(name, tree, is_leaf=is_equinox_state)


def leaves(tree: Any) -> list[tuple[str, Any]]:
    """Name the numeric arrays in a pytree: "0", "logits", "1/0"."""
    import jax

    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(_leaf_name(path), leaf) for path, leaf in flat if _is_numeric(leaf)]


def _leaf_name(path: Any) -> str:
    import jax

    return jax.tree_util.keystr(path, simple=True, separator=".")


def _is_numeric(leaf: Any) -> bool:
    import jax
    import jax.numpy as jnp

    return isinstance(leaf, jax.Array | np.ndarray) and bool(jnp.issubdtype(leaf.dtype, jnp.number)) and bool(leaf.size)
