"""Names what modules take and give while a JAX step is traced, and notes what is known of each module that runs."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from compare.jax_side.labels import Label, leaves, named
from compare.jax_side.primitives import trace_state
from compare.jax_side.state import named_leaves
from compare.step.arguments import positional, settings
from compare.step.made import made_at
from compare.step.observation import Port
from compare.step.places import JAX_PACKAGES, Source, source_here
from compare.step.user_code import passes_on


class Ran(NamedTuple):
    """A module that ran."""

    cls: type
    settings: tuple[tuple[str, str], ...]
    """Its attributes that are plain values, as Python writes them."""
    arguments: tuple[str, ...]
    """The names of its positional arguments."""
    made: Source | None
    """The user's line that made it, if that is known."""
    called: Source | None
    """The user's line that called it first."""
    elsewhere: bool = False
    """Whether another line called it, too."""
    inside: bool = False
    """Whether it ran inside a transformation (scan, vmap, checkpoint), where arrays have other shapes."""

    def also(self, *, inside: bool, called: Source | None) -> "Ran":
        """Note another call of the same module."""
        return self._replace(inside=self.inside or inside, elsewhere=self.elsewhere or called != self.called)


class JaxRecord:
    """The modules that run while a step is traced, in order of execution: what they take and give is named.

    See `labels.py`: the values are read where the traced program is run. There, parameters tell the path in the state
    of each module. While a model is traced, they do so outside of transformations alone: see `begin`.
    """

    def __init__(self) -> None:
        self.ran: dict[tuple[str, str], Ran] = {}
        """Each module that ran, by the root and the path in its names."""
        self.shapes: dict[Port, tuple[int, ...]] = {}
        """Of what each module of a known path takes and gives outside of transformations."""
        self._counts: Counter[str] = Counter()
        self._open: list[str | None] = []
        """The paths of the modules that have begun and not ended, outermost first."""
        self._parameters: dict[int, str] = {}
        self._kept: list[Any] = []
        self._roots: dict[str, str] = {}
        self._trace = trace_state()

    def begin(self, names: Sequence[str], parameters: Sequence[Any]) -> None:
        """Note that a model begins to run, and what its parameters are, by identity, while it does."""
        self._trace, self._kept = trace_state(), list(parameters)
        self._parameters = dict(zip(map(id, parameters), names, strict=True))

    @property
    def running(self) -> str:
        """The path of the innermost module that has not ended: where an error was raised, if one was."""
        return next((path for path in reversed(self._open) if path), "")

    @property
    def modules(self) -> dict[str, Ran]:
        """The modules of a known path, in order of first execution."""
        found: dict[str, Ran] = {}
        for key, ran in self.ran.items():
            if (path := self._path(*key)) is not None:
                found.setdefault(path, ran)
        return found

    def applied(self, root: str, parameters: Any) -> Any:
        """Name the parameters that a module is applied to: they tell what a number stands for."""
        for leaf, array in leaves(parameters):
            path = Label("parameter", root, "", leaf).root_in(self._parameters.get(id(array), ""))
            if path is not None:
                self._roots[root] = path
        return named(parameters, "parameter", root)

    @passes_on
    def call(
        self,
        root: str,
        path: str,
        function: Callable[..., Any],
        args: Any,
        kwargs: Any,
        module: Any,
        takes: Callable[..., Any] | None = None,
    ) -> Any:
        """Call a module's function, and name its inputs and outputs.

        Args:
            root: The path of the module's root, or a number that stands for it.
            path: That of the module within it.
            function: What is called.
            args: What it is called with.
            kwargs: And by name.
            module: What is recorded.
            takes: Has the signature of the call, if that is not the module's own.

        """
        inside, known = trace_state() != self._trace, self._path(root, path)
        before, called = self.ran.get((root, path)), source_here(*JAX_PACKAGES)
        if before is None:
            arguments = positional(type(module).__call__, 1) if takes is None else positional(takes)
            plain = settings(module) if hasattr(module, "__dict__") else ()
            self.ran[root, path] = Ran(type(module), plain, arguments, made_at(module), called, inside=inside)
        else:
            self.ran[root, path] = before.also(inside=inside, called=called)
        noted = None if inside else known
        number, kind = self._counts[noted or ""], type(module).__name__
        if noted is not None:
            self._counts[noted] += 1
            self._note(noted, number, "input", (args, kwargs))
        args, kwargs = named((args, kwargs), "input", root, path, kind)
        depth = len(self._open)
        self._open.append(known)
        output = function(*args, **kwargs)
        del self._open[depth:]  # of modules inside whose errors the model caught, too
        if noted is not None:
            self._note(noted, number, "output", output)
        return named(output, "output", root, path, kind)

    def _path(self, root: str, path: str) -> str | None:
        """Give the path of a module in the state; None if it is not known yet."""
        if root and root not in self._roots:
            return None
        return "/".join(filter(None, (self._roots.get(root, ""), path)))

    def _note(self, path: str, number: int, what: str, tree: Any) -> None:
        self.shapes |= {Port(path, number, what, leaf): tuple(array.shape) for leaf, array in leaves(tree)}


def names(tree: Any, *, collections: bool = False) -> list[str]:
    """Name the leaves of a pytree by their paths, "layers/0/kernel"; `collections` drops Linen's first key."""
    import jax

    joined = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in named_leaves(tree)]
    return [name.partition("/")[2] for name in joined] if collections else joined
