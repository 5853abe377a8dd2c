"""The JAX side: a Flax module, of nnx or of Linen, or any pure function over a pytree."""

import contextlib
import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from compare import weights
from compare.batch import Batch, called, checked_loss, mapped
from compare.draws import NO_HINTS, Draw, Hints
from compare.layers import Layer
from compare.lift_jax import lift, lift_nnx
from compare.observation import Observation, Port
from compare.problem import InputError
from compare.replay_jax import replayable, replaying

if TYPE_CHECKING:
    import optax

Adapt = Callable[[Any], Any]


class Functional(NamedTuple):
    """A model as a pure function."""

    params: Any
    """What is differentiated and updated: a pytree of the user's own structure."""
    buffers: Any
    """What else the model keeps and changes, such as running statistics."""
    rngs: Any
    """Its random number generators."""
    apply: Callable[..., Any]
    """`apply(params, buffers, rngs, args, kwargs, record)` gives the output, and new buffers and rngs."""


@dataclass(frozen=True)
class Flax:
    """One side of a comparison: a Flax model and how it is trained. None of them is changed.

    Args:
        model: An `nnx.Module`, or a pair `(linen_module, variables)`.
        loss: `loss(output, target)` gives a scalar.
        optimizer: An `optax.GradientTransformation`.
        batch: Adapts a batch to this side, `batch((inputs, target))` or `batch(inputs, target)`, and gives a pair:
            for example from NCHW to NHWC, or other names of arguments.

    Raises:
        InputError: If an argument is of another kind, or there is an optimizer but no loss.

    """

    model: Any
    loss: Callable[[Any, Any], Any] | None = None
    optimizer: "optax.GradientTransformation | None" = None
    batch: Callable[..., Any] | None = None

    name = "flax"

    def __post_init__(self) -> None:
        from flax import linen, nnx

        pair = isinstance(self.model, tuple) and len(self.model) == 2
        if not isinstance(self.model, nnx.Module) and not (pair and isinstance(self.model[0], linen.Module)):
            raise InputError(
                f"Flax(model=...) must be an nnx.Module or a pair (linen_module, variables), not {_kind(self.model)}"
            )
        if pair and "params" not in self.model[1]:
            raise InputError(
                'Flax(model=(linen_module, variables)): variables have no "params", only '
                f"{', '.join(self.model[1]) or 'nothing'}. Give what module.init(...) returns"
            )
        _check_optimizer(self)

    def layers(self) -> list[Layer]:
        """List the modules that hold weights."""
        from flax import nnx

        if isinstance(self.model, nnx.Module):
            return weights.nnx_layers(self.model)
        return weights.linen_layers(self.model[1], self.model[0])

    def functional(self, dtype: str, *, training: bool) -> Functional:
        """Make a pure function of a copy of the model, in the given mode."""
        from flax import nnx

        make = _nnx if isinstance(self.model, nnx.Module) else _linen
        return make(self.model, dtype, training)


@dataclass(frozen=True)
class Jax:
    """One side of a comparison: a pure function over any pytree of parameters (Equinox, Haiku, plain `jnp`).

    Args:
        apply: `apply(params, *inputs)` gives the output.
        params: Any pytree; what in it is not a floating-point array is left as it is.
        loss: `loss(output, target)` gives a scalar.
        optimizer: An `optax.GradientTransformation`.
        batch: Adapts a batch to this side, as for `Flax`.

    Raises:
        InputError: If an argument is of another kind, or there is an optimizer but no loss.

    """

    apply: Callable[..., Any]
    params: Any
    loss: Callable[[Any, Any], Any] | None = None
    optimizer: "optax.GradientTransformation | None" = None
    batch: Callable[..., Any] | None = None

    name = "jax"

    def __post_init__(self) -> None:
        if not callable(self.apply):
            raise InputError(f"Jax(apply=...) must be a function of (params, *inputs), not {_kind(self.apply)}")
        _check_optimizer(self)

    def layers(self) -> list[Layer]:
        """List the parts of the pytree that hold weights."""
        return weights.pytree_layers(self.params)

    def functional(self, dtype: str, *, training: bool) -> Functional:
        """Make it a function of its floating-point arrays alone, in the given mode."""
        import jax

        flat, structure = jax.tree.flatten(self.params)
        trained = [_floating(leaf) for leaf in flat]
        fixed = [None if is_trained else leaf for leaf, is_trained in zip(flat, trained, strict=True)]

        def apply(params: Any, buffers: Any, rngs: Any, args: Any, kwargs: Any, record: Any) -> Any:
            values = iter(jax.tree.leaves(params))
            whole = [next(values) if is_trained else leaf for leaf, is_trained in zip(fixed, trained, strict=True)]
            kwargs = _mode(self.apply, kwargs, training)
            output = record.call("", functools.partial(self.apply, jax.tree.unflatten(structure, whole)), args, kwargs)
            return output, buffers, rngs

        chosen = [leaf if is_trained else None for leaf, is_trained in zip(flat, trained, strict=True)]
        return Functional(_cast(jax.tree.unflatten(structure, chosen), dtype), (), (), apply)


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"


def _check_optimizer(side: Flax | Jax) -> None:
    what = f"{type(side).__name__}(optimizer=...)"
    if side.optimizer is None:
        return
    if not (hasattr(side.optimizer, "init") and hasattr(side.optimizer, "update")):
        raise InputError(f"{what} must be an optax.GradientTransformation, not {_kind(side.optimizer)}")
    if side.loss is None:
        raise InputError(f"{what} needs a loss, whose gradients it follows: {type(side).__name__}(loss=...)")


def _floating(leaf: Any) -> bool:
    return (hasattr(leaf, "dtype") and np.issubdtype(np.dtype(leaf.dtype), np.floating)) or _low_precision(leaf)


def _low_precision(leaf: Any) -> bool:
    return getattr(getattr(leaf, "dtype", None), "name", "") == "bfloat16"


def _cast(tree: Any, dtype: str) -> Any:
    """Copy a pytree, with every floating-point leaf cast to `dtype`."""
    import jax
    import jax.numpy as jnp

    def cast(leaf: Any) -> Any:
        if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.array(leaf) if hasattr(leaf, "dtype") else leaf
        return jnp.asarray(np.asarray(leaf, np.float64), dtype)

    return jax.tree.map(cast, tree)


_TRAINING = {"train": True, "training": True, "is_training": True, "deterministic": False, "use_running_average": False}
"""What modules call the argument that chooses between training and evaluation, and its value for training."""


def _mode(function: Callable[..., Any], kwargs: dict[str, Any], training: bool) -> dict[str, Any]:
    """Put a model in torch's mode, if it takes that as an argument that the batch does not give."""
    takes = inspect.signature(function).parameters
    chosen = {name: value == training for name, value in _TRAINING.items() if name in takes and name not in kwargs}
    return kwargs | chosen


def _nnx(model: Any, dtype: str, training: bool) -> Functional:
    import jax
    from flax import nnx

    copied = nnx.clone(model)
    copied.train() if training else copied.eval()
    if dtype == "float64":
        lift_nnx(copied)
    graph, *states = nnx.split(copied, nnx.Param, nnx.RngState, ...)
    params, rngs, buffers = states

    def apply(params: Any, buffers: Any, rngs: Any, args: Any, kwargs: Any, record: Any) -> Any:
        # Taken apart and put together, so that they belong to this trace: nnx lets no other change them.
        rngs, buffers = jax.tree.map(lambda leaf: leaf, (rngs, buffers))
        merged = nnx.merge(graph, params, rngs, buffers)
        with _recorded_nnx(merged, record):
            output = merged(*args, **_mode(type(merged).__call__, kwargs, training))
        _, *states = nnx.split(merged, nnx.RngState, nnx.Param, ...)
        return output, states[2], states[0]

    return Functional(_cast(params, dtype), _cast(buffers, dtype), rngs, apply)


@contextlib.contextmanager
def _recorded_nnx(model: Any, record: "JaxRecord") -> Iterator[None]:
    """Record the calls of all modules of a model: Python looks `__call__` up on the class."""
    from flax import nnx

    paths = {id(module): "/".join(map(str, path)) for path, module in nnx.iter_modules(model)}
    classes = {type(module) for _, module in nnx.iter_modules(model) if callable(module)}
    inside: list[int] = []

    def recorded(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(module: Any, *args: Any, **kwargs: Any) -> Any:
            if id(module) not in paths or id(module) in inside:  # a super().__call__() is part of the same call
                return original(module, *args, **kwargs)
            inside.append(id(module))
            try:
                return record.call(paths[id(module)], functools.partial(original, module), args, kwargs, module)
            finally:
                inside.pop()

        return call

    from unittest import mock  # which brings asyncio: not for everybody who imports compare

    with contextlib.ExitStack() as stack:
        for cls in classes:
            stack.enter_context(mock.patch.object(cls, "__call__", recorded(cls.__call__)))
        yield


def _linen(model: tuple[Any, Mapping[str, Any]], dtype: str, training: bool) -> Functional:
    import jax
    from flax import linen

    module, variables = model
    params, buffers = variables["params"], {name: tree for name, tree in variables.items() if name != "params"}

    def apply(params: Any, buffers: Any, rngs: Any, args: Any, kwargs: Any, record: Any) -> Any:
        def recorded(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if context.method_name != "__call__" or context.module.scope is None:
                return function(*args, **kwargs)
            return record.call("/".join(context.module.path), function, args, kwargs, context.module)

        keys = {"dropout": jax.random.fold_in(rngs["key"], rngs["count"])}
        with linen.intercept_methods(recorded):
            output, changed = module.apply(
                {"params": params, **buffers},
                *args,
                rngs=keys,
                mutable=list(buffers) if training else [],
                **_mode(module.__call__, kwargs, training),
            )
        return output, {**buffers, **changed}, rngs | {"count": rngs["count"] + 1}

    rngs = {"key": jax.random.key(0), "count": np.int32(0)}
    return Functional(_cast(params, dtype), _cast(buffers, dtype), rngs, apply)


class JaxRecord:
    """What goes into each module and comes out of it, in order of execution; filled while a step is traced.

    Where a value is `given`, it is recorded as the model computed it, and the model goes on with the given one: so
    that every module is seen with right inputs, whatever the modules before it did.
    """

    def __init__(self, given: Mapping[Port, Any] | None = None) -> None:
        self.seen: dict[Port, Any] = {}
        self.modules: dict[str, Any] = {}
        """Each module that ran, by path, in order of first execution."""
        self.hidden: dict[str, None] = {}
        """Modules that ran inside a transformation (scan, vmap, checkpoint), whose values do not come out of it."""
        self._given = given or {}
        self._calls: Counter[str] = Counter()
        self._trace = _trace()

    def call(self, path: str, function: Callable[..., Any], args: Any, kwargs: Any, module: Any = None) -> Any:
        """Call a module's function, and record what goes in and what comes out."""
        call = self._calls[path]
        self._calls[path] += 1
        self.modules.setdefault(path, module)
        if _trace() != self._trace:
            self.hidden[path] = None
            return function(*args, **kwargs)
        args, kwargs = self._keep(path, call, "input", (args, kwargs))
        return self._keep(path, call, "output", function(*args, **kwargs))

    def _keep(self, path: str, call: int, kind: str, tree: Any) -> Any:
        ports = {leaf: Port(path, call, kind, leaf) for leaf, _ in leaves(tree)}
        self.seen.update({ports[leaf]: array for leaf, array in leaves(tree)})
        given = {leaf: self._given[port] for leaf, port in ports.items() if port in self._given}
        if not given:
            return tree
        import jax

        def replaced(path: Any, leaf: Any) -> Any:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            return given[name].astype(leaf.dtype) if name in given else leaf

        return jax.tree_util.tree_map_with_path(replaced, tree)


def _trace() -> Any:
    from jax.extend.core import get_opaque_trace_state

    return get_opaque_trace_state(convention="flax")


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
    joined = [jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value") for path in paths]
    return [name.partition("/")[2] for name in joined] if collections else joined


class JaxRun:
    """A training run from the given weights, in one precision: each step is one compiled program."""

    def __init__(
        self, side: Flax | Jax, dtype: str, *, training: bool, unroll: bool = False, hints: Hints = NO_HINTS
    ) -> None:
        import jax

        self.side = side
        self.hints = hints
        self.dtype = dtype
        self.unroll = unroll
        self.modules: dict[str, Any] = {}
        self.hidden: dict[str, None] = {}
        self.unreplayed: list[str] = []
        """Random numbers that one side draws and the other does not, for a person to read."""
        self.guessed: list[str] = []
        """Random numbers whose layout is ambiguous."""
        self.ports: list[Port] = []
        self._given: tuple[Port, ...] = ()
        with self._precision():
            functional = side.functional(dtype, training=training)
            self.params, self.buffers, self.rngs, self._apply = functional
            self.state = side.optimizer.init(self.params) if side.optimizer else ()
        linen = isinstance(self.buffers, dict)
        self.param_names = names(self.params)
        self.buffer_names = names(self.buffers, collections=linen)
        self.state_names = names(self.state)
        self.dtypes: frozenset[str] = frozenset()
        """Of everything that the forward pass computes, if it was probed."""
        self.pinned: list[str] = []
        """What could not be lifted to float64, for a person to read."""
        self._step = jax.jit(lift(self._traced, self.pinned) if dtype == "float64" else self._traced)

    def _precision(self) -> Any:
        # Entered anew for each step: between two steps the other precision has its turn.
        import jax

        return jax.enable_x64(self.dtype == "float64")

    def probe(self, batch: Batch) -> None:
        """Trace the forward pass, without running it, to see which modules it calls and which dtypes it has."""
        import jax

        def traced(*arguments: Any) -> Any:
            return self._forward(*arguments)[1].seen

        with self._precision():
            inputs = self.arguments(batch)[0]
            program = jax.make_jaxpr(traced)(self.params, self.buffers, self.rngs, inputs)
        self.dtypes = frozenset(_dtypes(program.jaxpr))

    def forward(self, batch: Batch, draws: Sequence[Draw] = ()) -> dict[Port, Any]:
        """Run the model forward alone, and show what its modules take and give."""
        import jax

        def traced(params: Any, buffers: Any, rngs: Any, inputs: Any, draws: Any) -> Any:
            def model(params: Any) -> Any:
                return list(self._forward(params, buffers, rngs, inputs)[1].seen.values())

            return replaying(model, draws, [], [], self.hints)(params)

        with self._precision():
            inputs = self.arguments(batch)[0]
            seen = jax.jit(traced)(self.params, self.buffers, self.rngs, inputs, replayable(draws))
        return dict(zip(self.ports, seen, strict=True))

    def arrays(self) -> dict[str, np.ndarray]:
        """Give parameters and buffers by name."""
        import jax

        return {
            name: np.asarray(leaf)
            for tree, named in ((self.params, self.param_names), (self.buffers, self.buffer_names))
            for name, leaf in zip(named, jax.tree.leaves(tree), strict=True)
        }

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace parameters and buffers, by name; the optimizer's state starts afresh."""
        with self._precision():
            self.params = self._replaced(self.params, self.param_names, arrays)
            self.buffers = self._replaced(self.buffers, self.buffer_names, arrays)
            self.state = self.side.optimizer.init(self.params) if self.side.optimizer else ()

    def state_arrays(self) -> dict[str, np.ndarray]:
        """Give the optimizer's state by name."""
        import jax

        return dict(zip(self.state_names, map(np.asarray, jax.tree.leaves(self.state)), strict=True))

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace the optimizer's state, by name."""
        with self._precision():
            self.state = self._replaced(self.state, self.state_names, arrays)

    @staticmethod
    def _replaced(tree: Any, names: list[str], arrays: Mapping[str, np.ndarray]) -> Any:
        """Replace those leaves of a pytree that are among `arrays`, by copies."""
        import jax
        import jax.numpy as jnp

        values, structure = jax.tree.flatten(tree)
        replaced = [
            jnp.array(arrays[name], value.dtype) if name in arrays else value
            for name, value in zip(names, values, strict=True)
        ]
        return jax.tree.unflatten(structure, replaced)

    def _forward(
        self, params: Any, buffers: Any, rngs: Any, inputs: Any, given: Mapping[Port, Any] | None = None
    ) -> tuple[Any, JaxRecord, Any, Any]:
        from flax.errors import FlaxError

        record = JaxRecord(given)
        args, kwargs = inputs
        try:
            output, buffers, rngs = self._apply(params, buffers, rngs, args, kwargs, record)
        except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError, FlaxError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"the {self.side.name} model does not take the batch, {Batch(*inputs)}: {error}. "
                "Adapt the batch with batch= where this side needs another layout or other names"
            ) from error
        self.modules, self.hidden, self.ports = record.modules, record.hidden, list(record.seen)
        return output, record, buffers, rngs

    def _traced(
        self, params: Any, buffers: Any, rngs: Any, state: Any, inputs: Any, target: Any, draws: Any, given: Any
    ) -> Any:
        """One step, as JAX compiles it."""
        import jax
        import optax

        def model(params: Any) -> Any:
            ports = dict(zip(self._given, given[0], strict=True)) if given else None
            output, record, after, generators = self._forward(params, buffers, rngs, inputs, ports)
            loss = None
            if self.side.loss is not None:
                loss = checked_loss(self.side.name, self.side.loss, output, target)
            return loss, (list(record.seen.values()), after, generators)

        compute = replaying(model, draws, self.unreplayed, self.guessed, self.hints)
        # Without jit, lax.scan runs as a loop in Python: layers in a scan come out one by one. It stays one program.
        with jax.disable_jit(self.unroll):
            if self.side.loss is None:
                _, (seen, buffers, rngs) = compute(params)
                return None, (), (), params, buffers, rngs, state, seen
            (loss, (seen, buffers, rngs)), gradients = jax.value_and_grad(compute, has_aux=True)(params)
            updates: Any = ()
            if self.side.optimizer is not None:
                updates, state = self.side.optimizer.update(given[1] if given else gradients, state, params)
                params = optax.apply_updates(params, updates)
        return loss, gradients, updates, params, buffers, rngs, state, seen

    def arguments(self, batch: Batch) -> tuple[Any, Any]:
        """Adapt a batch and give its inputs, as `(args, kwargs)`, and its target."""
        import jax.numpy as jnp

        def convert(array: Any) -> Any:
            if not isinstance(array, np.ndarray | np.generic):
                return array
            return jnp.asarray(array, self.dtype if array.dtype.kind == "f" else None)

        inputs, target = adapted(batch, self.side.batch)
        return called(inputs, convert), mapped(target, convert)

    def step(
        self,
        batch: Batch,
        draws: Sequence[Draw] = (),
        given: tuple[Mapping[Port, np.ndarray], Mapping[str, np.ndarray]] | None = None,
    ) -> Observation:
        """Take one step: forward, and as far as there is a loss and an optimizer, backward and update.

        With values `given` for modules' inputs and outputs, and for gradients, each part of the step starts from
        these, and shows what it makes of them.
        """
        import jax

        with self._precision():
            inputs, target = self.arguments(batch)
            values: tuple[Any, ...] = ()
            if given is not None:
                self._given = tuple(given[0])
                values = tuple(given[0].values()), self._replaced(self.params, self.param_names, given[1])
            loss, gradients, updates, self.params, self.buffers, self.rngs, self.state, seen = self._step(
                self.params, self.buffers, self.rngs, self.state, inputs, target, replayable(draws), values
            )
        trained = self.side.optimizer is not None

        def named(tree: Any, names: list[str]) -> dict[str, Any]:
            return dict(zip(names, jax.tree.leaves(tree), strict=True))

        return Observation(
            loss=loss,
            gradients=named(gradients, self.param_names) if self.side.loss else {},
            updates=named(updates, self.param_names) if trained else {},
            parameters=named(self.params, self.param_names) if trained else {},
            optimizer=named(self.state, self.state_names) if trained else {},
            buffers=named(self.buffers, self.buffer_names),
            forward=dict(zip(self.ports, seen, strict=True)),
        )


def _dtypes(jaxpr: Any) -> Iterator[str]:
    from jax.extend.core import jaxprs_in_params

    for eqn in jaxpr.eqns:
        yield from (str(variable.aval.dtype) for variable in eqn.outvars if hasattr(variable.aval, "dtype"))
        for nested in jaxprs_in_params(eqn.params):
            yield from _dtypes(nested)


def adapted(batch: Batch, adapt: Callable[..., Any] | None) -> Batch:
    """Apply the user's `batch=` function."""
    if adapt is None:
        return batch
    positional = [
        parameter
        for parameter in inspect.signature(adapt).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    try:
        found = adapt(*batch) if len(positional) == 2 else adapt(tuple(batch))
    except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        raise InputError(f"batch= does not take the batch ({batch}), a pair of inputs and target: {error}") from error
    if isinstance(found, tuple | list) and len(found) == 2:
        return Batch(*found)
    if batch.target is None:
        return Batch(found)
    raise InputError(f"batch= must give a pair (inputs, target), and gave {_kind(found)}")
