"""Names within a traced program: what a named tensor is, and how a tensor gets its name.

A tensor that is recorded while a step is traced cannot leave a nested jit, grad or scan. A name can: each tensor is
passed through `jax.ad_checkpoint.checkpoint_name`, an identity. The interpreter of the traced program then reads the
values of the named operations. `naming.py` names tensors while a step is traced, and `watching.py` reads them while
the traced program is run.
"""

from typing import Any, NamedTuple

import numpy as np

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

    def __str__(self) -> str:
        return "|".join(("netparity", *self))

    @property
    def inner(self) -> str:
        """The leaf as the end of a path in the state: "dense/kernel" for "dense.kernel"."""
        return self.leaf.replace(".", "/")

    def root_in(self, name: str) -> str | None:
        """Give the root in the state of a parameter, of which the whole path is given; None if it is not this leaf."""
        return name.removesuffix(self.inner).rstrip("/") if name.endswith(self.inner) else None

    @classmethod
    def of(cls, text: str) -> "Label | None":
        """Read it from a name in a program; None if the name is the user's own."""
        first, *rest = text.split("|")
        return cls(*rest) if first == "netparity" and len(rest) == len(cls._fields) else None


def named(tree: Any, what: str, root: str, path: str = "", kind: str = "") -> Any:
    """Pass each numeric array of a pytree through a name."""
    import jax
    from jax.ad_checkpoint import checkpoint_name

    def name(leaf_path: Any, array: Any) -> Any:
        # By its place: a cell gives one array as its new state and as its output.
        label = Label(what, root, path, _leaf_name(leaf_path), kind)
        return checkpoint_name(array, str(label)) if _is_numeric(array) else array

    return jax.tree_util.tree_map_with_path(name, tree)


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
