"""Values that are no arrays in the arguments and results of a compiled step: they are part of what is compiled."""

import dataclasses
import functools
from typing import Any


@functools.cache
def _static() -> Any:
    """Return the class of such a value, a pytree without leaves: each value of it is compiled by itself."""
    import jax

    @jax.tree_util.register_static
    @dataclasses.dataclass(frozen=True)
    class Static:
        value: Any

    return Static


def static(value: Any) -> Any:
    """Make a value, such as a mode's name among a batch's inputs, one that a step does not take as an array."""
    return _static()(value)


def with_values(tree: Any) -> Any:
    """Put static values back into a tree of a step's arguments."""
    import jax

    kind = _static()

    def value(leaf: Any) -> Any:
        return leaf.value if isinstance(leaf, kind) else leaf

    return jax.tree.map(value, tree, is_leaf=lambda leaf: isinstance(leaf, kind))


def each_once(tree: Any) -> tuple[list[Any], Any]:
    """Take a tree of arrays apart into its different arrays, and what puts it together: see `all_again`.

    Two outputs of a compiled program take the memory of two, also where they are one array.
    """
    import jax

    leaves, structure = jax.tree.flatten(tree)
    known = {id(leaf): leaf for leaf in leaves}
    numbers = {each: number for number, each in enumerate(known)}
    return [*known.values()], static((structure, tuple(numbers[id(leaf)] for leaf in leaves)))


def all_again(taken_apart: tuple[list[Any], Any]) -> Any:
    """Put the tree together again."""
    import jax

    arrays, rest = taken_apart
    structure, numbers = rest.value
    return jax.tree.unflatten(structure, [arrays[number] for number in numbers])
