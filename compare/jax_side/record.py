"""Names the inputs and outputs of a JAX model's modules while its step is traced."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from compare.jax_side.labels import leaves, named
from compare.jax_side.primitives import trace_state
from compare.step.arguments import positional
from compare.step.observation import Port
from compare.step.places import JAX_PACKAGES, Source, source_here
from compare.step.user_code import passes_on


class JaxRecord:
    """The modules that run while a step is traced, in order of execution: what they take and give is named.

    See `labels.py`: the values are read where the traced program is run.
    """

    def __init__(self) -> None:
        self.modules: dict[str, Any] = {}
        """Each module that ran, by path, in order of first execution."""
        self.hidden: dict[str, None] = {}
        """Modules that ran inside a transformation (scan, vmap, checkpoint), where arrays have other shapes."""
        self.arguments: dict[str, tuple[str, ...]] = {}
        """The names of each module's positional arguments."""
        self.calls: dict[str, Source | None] = {}
        """The user's line that first calls each module."""
        self.shapes: dict[Port, tuple[int, ...]] = {}
        """Of what each module takes and gives."""
        self._counts: Counter[str] = Counter()
        self._open: list[str] = []
        """The modules that have begun and not ended, outermost first."""
        self._trace = trace_state()

    @property
    def running(self) -> str:
        """The path of the innermost module that has not ended: where an error was raised, if one was."""
        return self._open[-1] if self._open else ""

    @passes_on
    def call(self, path: str, function: Callable[..., Any], args: Any, kwargs: Any, module: Any = None) -> Any:
        """Call a module's function, and name its inputs and outputs."""
        if path not in self.modules:
            self.modules[path], self.arguments[path] = module, positional(function)
            self.calls[path] = source_here(*JAX_PACKAGES)
        inside = trace_state() != self._trace
        if inside:
            self.hidden[path] = None
        kind, number = type(module).__name__, self._counts[path]
        self._counts[path] += 1
        if not inside:
            self._note(path, number, "input", (args, kwargs))
        args, kwargs = named((args, kwargs), "input", "", path, kind)
        depth = len(self._open)
        self._open.append(path)
        output = function(*args, **kwargs)
        del self._open[depth:]  # of modules inside whose errors the model caught, too
        if not inside:
            self._note(path, number, "output", output)
        return named(output, "output", "", path, kind)

    def _note(self, path: str, number: int, what: str, tree: Any) -> None:
        self.shapes |= {Port(path, number, what, leaf): tuple(array.shape) for leaf, array in leaves(tree)}


def names(tree: Any, *, collections: bool = False) -> list[str]:
    """Name the leaves of a pytree by their paths, "layers/0/kernel"; `collections` drops Linen's first key."""
    import jax

    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    # The array of an nnx variable is its attribute `value`; a key of that name, in a dictionary, is a name.
    attribute = jax.tree_util.GetAttrKey("value")
    paths = [path[:-1] if path and path[-1] == attribute else path for path in paths]
    joined = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
    return [name.partition("/")[2] for name in joined] if collections else joined
