"""Values that are no arrays in the arguments and results of a compiled step: they are part of what is compiled."""

import dataclasses
import functools
from typing import Any

from compare.step.observation import Port


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


def by_port(seen: tuple[list[Any], Any]) -> dict[Port, Any]:
    """Name the arrays that a step shows. What one module gives is what the next takes, and is shown once."""
    arrays, ports = seen
    return {port: arrays[number] for port, number in ports.value}
