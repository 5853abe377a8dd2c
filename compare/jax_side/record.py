"""Records the inputs and outputs of a JAX model's modules while its step is traced."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from compare.jax_side.given import exchanged
from compare.jax_side.primitives import trace_state
from compare.step.arguments import positional
from compare.step.observation import Port
from compare.step.places import JAX_PACKAGES, Source, source_here
from compare.step.user_code import passes_on


class JaxRecord:
    """The inputs and outputs of each module, in order of execution; filled while a step is traced.

    Where a value is `given`, as a pair of the value and whether it is to be used, it is recorded as the model computed
    it, and the model goes on with the given one: so that every module is seen with right inputs, whatever the modules
    before it did.
    """

    def __init__(self, given: Mapping[Port, tuple[Any, Any]] | None = None) -> None:
        self.seen: dict[Port, Any] = {}
        self.modules: dict[str, Any] = {}
        """Each module that ran, by path, in order of first execution."""
        self.hidden: dict[str, None] = {}
        """Modules that ran inside a transformation (scan, vmap, checkpoint), whose values do not come out of it."""
        self.arguments: dict[str, tuple[str, ...]] = {}
        """The names of each module's positional arguments."""
        self.calls: dict[str, Source | None] = {}
        """The user's line that first calls each module."""
        self._given = given or {}
        self._open: list[str] = []
        """The modules that have begun and not ended, outermost first."""
        self._calls: Counter[str] = Counter()
        self._trace = trace_state()

    @property
    def running(self) -> str:
        """The path of the innermost module that has not ended: where an error was raised, if one was."""
        return self._open[-1] if self._open else ""

    @passes_on
    def call(self, path: str, function: Callable[..., Any], args: Any, kwargs: Any, module: Any = None) -> Any:
        """Call a module's function, and record its inputs and outputs."""
        call = self._calls[path]
        self._calls[path] += 1
        if path not in self.modules:
            self.modules[path], self.arguments[path] = module, positional(function)
            self.calls[path] = source_here(*JAX_PACKAGES)
        # A tracer of an inner transformation, such as scan's body, must not leave it. The module is only
        # noted: `hidden`.
        if trace_state() != self._trace:
            self.hidden[path] = None
            return function(*args, **kwargs)
        args, kwargs = self._keep(path, call, "input", (args, kwargs))
        depth = len(self._open)
        self._open.append(path)
        output = function(*args, **kwargs)
        del self._open[depth:]  # of modules inside whose errors the model caught, too
        return self._keep(path, call, "output", output)

    def _keep(self, path: str, call: int, kind: str, tree: Any) -> Any:
        ports = {leaf: Port(path, call, kind, leaf) for leaf, _ in leaves(tree)}
        self.seen.update({ports[leaf]: array for leaf, array in leaves(tree)})
        given = {leaf: self._given[port] for leaf, port in ports.items() if port in self._given}
        if not given:
            return tree
        import jax

        def replaced(path: Any, leaf: Any) -> Any:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            return exchanged(leaf, *given[name]) if name in given else leaf

        return jax.tree_util.tree_map_with_path(replaced, tree)


def leaves(tree: Any) -> list[tuple[str, Any]]:
    """Name the numeric arrays in a pytree: "0", "logits", "1/0"."""
    import jax
    import jax.numpy as jnp

    return [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
        if isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.number) and leaf.size
    ]


def names(tree: Any, *, collections: bool = False) -> list[str]:
    """Name the leaves of a pytree by their paths, "layers/0/kernel"; `collections` drops Linen's first key."""
    import jax

    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    # The array of an nnx variable is its attribute `value`; a key of that name, in a dictionary, is a name.
    attribute = jax.tree_util.GetAttrKey("value")
    paths = [path[:-1] if path and path[-1] == attribute else path for path in paths]
    joined = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
    return [name.partition("/")[2] for name in joined] if collections else joined
