"""A training run of the JAX side: compiles one step, takes steps, and shows what each of them computes."""

import functools
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from compare.jax_side.choices import add_choices
from compare.jax_side.compiled_step import CompiledStep
from compare.jax_side.compiling import older_fusions
from compare.jax_side.computed import Computed
from compare.jax_side.full_float32 import in_full_float32
from compare.jax_side.functional import cast
from compare.jax_side.given import Given
from compare.jax_side.levels import of_parameters, without_level
from compare.jax_side.lift import lift
from compare.jax_side.made import noted
from compare.jax_side.primitives import Program, programs
from compare.jax_side.record import names
from compare.jax_side.replay import replayable, replaying
from compare.jax_side.side import Flax, Jax
from compare.jax_side.static import by_port as seen_by_port
from compare.jax_side.twins import written
from compare.numerics.distance import ULPS
from compare.numerics.tables import movement
from compare.step.batch import Batch
from compare.step.draws import NO_HINTS, Draw, Hints
from compare.step.observation import Observation, Port
from compare.step.user_code import call_user_code


class JaxRun(CompiledStep):
    """A training run from the given weights, in one precision: a compiled step, and its current values."""

    def __init__(
        self,
        side: Flax | Jax,
        dtype: str,
        *,
        training: bool,
        keep_modes: bool = False,
        unroll: bool = False,
        widen: bool = False,
        hints: Hints = NO_HINTS,
    ) -> None:
        super().__init__(side, dtype, training=training, keep_modes=keep_modes, unroll=unroll, hints=hints)
        if widen:
            with self.precision():
                self.params = cast(self.params, dtype)
        self.state: Any = ()
        """Of the optimizer, from the first `load` on."""
        self.state_names: list[str] = []
        self.param_names = names(self.params)
        self.buffer_names = names(self.buffers, collections=self._linen)
        self.dtypes: frozenset[str] = frozenset()
        """Of everything that the forward pass computes, if it was probed."""
        self.computed: Computed | None = None
        """What is computed between the modules, if it was probed."""
        self.shapes: dict[Port, tuple[int, ...]] = {}
        """Of what each module takes and gives, if it was probed."""
        self.written = written(self.buffers)
        """What its buffers are in the program as it is written: see `twins.written`."""
        self.tables = 0
        """Which movement of its float32 tables it is for, 0 for none: see `move_tables`."""

    def probe(self, batch: Batch) -> None:
        """Trace the forward pass, without running it, to see which modules it calls and which dtypes it has."""
        import jax

        ports: dict[Port, int] = {}

        def traced(*arguments: Any) -> Any:
            arrays, named = self._forward(*arguments)[1]
            ports.update(named.value)
            return arrays

        with self.precision(), noted():  # Linen makes its modules while it is traced
            inputs = self.arguments(batch)[0]
            program = jax.make_jaxpr(traced)(self.params, self.buffers, self.rngs, inputs)
        self.dtypes = frozenset(_dtypes(program))
        self.computed = Computed.of_model(program, ports)
        self.shapes = {port: tuple(program.out_avals[number].shape) for port, number in ports.items()}

    def forward(
        self,
        batch: Batch,
        draws: Sequence[Draw] = (),
        given: Mapping[Port, np.ndarray] | None = None,
        full: bool = False,
    ) -> dict[Port, Any]:
        """Run only the forward pass, with `given` values put in, and return the inputs and outputs of its modules.

        With `full`, nothing is computed in fewer bits than float32 has.
        """
        import jax

        ports = {port: (value, True) for port, value in (given or {}).items()}

        def traced(params: Any, buffers: Any, rngs: Any, inputs: Any, draws: Any) -> Any:
            def model(params: Any) -> Any:
                return self._forward(params, buffers, rngs, inputs, ports)[1]

            return replaying(model, draws, [], [], self.hints)(params)

        with self.precision():
            inputs = self.arguments(batch)[0]
            program = in_full_float32(traced) if full else traced
            options = older_fusions() if given else None
            forward = jax.jit(lift(program, []) if self.dtype == "float64" else program, compiler_options=options)
            seen = forward(self.params, self.buffers, self.rngs, inputs, replayable(draws, self.dtype))
        return seen_by_port(seen)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return parameters and buffers by name."""
        import jax

        return {
            name: np.asarray(leaf)
            for tree, named in ((self.params, self.param_names), (self.buffers, self.buffer_names))
            for name, leaf in zip(named, jax.tree.leaves(tree), strict=True)
        }

    def load_model(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace parameters and buffers, by name."""
        with self.precision():
            self.params = self._replaced(self.params, self.param_names, arrays)
            self.buffers = self._replaced(self.buffers, self.buffer_names, arrays)
        self.written = written(self.buffers)

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace parameters and buffers, by name; the optimizer's state starts afresh."""
        import jax

        self.load_model(arrays)
        with self.precision():
            if self.side.optimizer is not None:
                if self._linen and self.optimizer is self.side.optimizer:
                    self.optimizer = of_parameters(self.optimizer, self.params)
                # From these parameters: an optimizer may keep a copy of them, as optax.lookahead and
                # contrib.schedule_free do.
                init = functools.partial(self.optimizer.init, self.params)
                state = call_user_code(f"the {self.side.name} optimizer's init", init)
                # A step overwrites it: it must share no memory with the parameters, or within itself.
                self.state = jax.device_put(state, may_alias=False)
                self.state_names = names(self.state)
                if self.optimizer is not self.side.optimizer:
                    self.state_names = [*map(without_level, self.state_names)]

    def perturb(self, seed: int, epsilon: float | None = None) -> None:
        """Change parameters by a few units in the last place, to measure the effect; the optimizer starts again."""
        noise, ulps = np.random.default_rng(seed), ULPS * (epsilon or float(np.finfo(self.dtype).eps))
        moved = {name: array for name, array in self.arrays().items() if name in self.param_names}
        self.load({name: array * (1 + noise.choice((-ulps, ulps), array.shape)) for name, array in moved.items()})

    def move_functions(self, draw: int) -> None:
        """Move what functions such as tanh and sums give by their rounding; that is another compiled step."""
        self.functions = draw
        vars(self).pop("compiled", None)

    def move_tables(self, draw: int, names: Container[str]) -> None:
        """Move some of the buffers, and what the program holds, by the float32 rounding that is in them."""
        self.tables, before = draw, self.written
        moved = {name: array for name, array in self.arrays().items() if name in names}
        self.load({name: array + movement(array, draw) for name, array in moved.items()})
        self.written = before

    def state_arrays(self) -> dict[str, np.ndarray]:
        """Return the optimizer's state by name."""
        import jax

        return dict(zip(self.state_names, map(np.asarray, jax.tree.leaves(self.state)), strict=True))

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace the optimizer's state, by name."""
        with self.precision():
            self.state = self._replaced(self.state, self.state_names, arrays)

    @staticmethod
    def _replaced(tree: Any, names: list[str], arrays: Mapping[str, np.ndarray]) -> Any:
        """Replace those leaves of a pytree that are among `arrays`, by copies.

        They are copied once as arrays of JAX's: what comes from NumPy, a step could not overwrite.
        """
        import jax

        values, structure = jax.tree.flatten(tree)
        meant = [number for number, name in enumerate(names) if name in arrays]
        given = [np.asarray(arrays[names[number]], values[number].dtype) for number in meant]
        # All at once: a model has hundreds, and each call takes as long as a small one of them.
        for number, copied in zip(meant, jax.device_put(jax.device_put(given), may_alias=False), strict=True):
            values[number] = copied
        return jax.tree.unflatten(structure, values)

    def compile(self, batch: Batch, draws: Sequence[Draw]) -> None:
        """Compile a step before it is taken. With random numbers of other kinds or shapes, it is once more."""
        with self.precision():
            compiled = functools.partial(self.compiled.lower, *self._arguments(batch, draws))
            call_user_code(f"a step of the {self.side.name} side", compiled).compile()

    def program(self, batch: Batch, draws: Sequence[Draw]) -> Any:
        """Return the traced program of a step. A step that was taken before is not traced again."""
        with self.precision():
            return self.compiled.trace(*self._arguments(batch, draws)).jaxpr

    def _arguments(self, batch: Batch, draws: Sequence[Draw], given: tuple[Any, ...] = ()) -> tuple[Any, ...]:
        state = self.params, self.buffers, self.rngs, self.state
        # An argument and not a constant, so that moving the tables needs no second compilation.
        moved = ((np.int32(self.tables), self.written),) if self.dtype == "float64" else ()
        return *state, *self.arguments(batch), replayable(draws, self.dtype), given, *moved

    def step(
        self,
        batch: Batch,
        draws: Sequence[Draw] = (),
        given: Given | None = None,
    ) -> Observation:
        """Take one step: forward, and as far as there is a loss and an optimizer, backward and update.

        With values `given` for modules' inputs and outputs, and for gradients, each part of the step starts from
        these, and shows what it makes of them.
        """
        import jax

        with self.precision():
            values: tuple[Any, ...] = ()
            if given is not None:
                gradients = self._replaced(self.params, self.param_names, given.gradients)
                known = np.array([name not in given.own for name in self.param_names], bool)
                values = dict(given.ports), given.chosen, gradients, known
            step = functools.partial(self.compiled, *self._arguments(batch, draws, values))
            shown = call_user_code(f"a step of the {self.side.name} side", step)
            if self.dtype == "float64":
                shown, made = shown
                add_choices(self.chosen, made)
            loss, gradients, updates, self.params, self.buffers, self.rngs, self.state, seen = shown
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
            forward=seen_by_port(seen),
        )


def _dtypes(program: Any) -> Iterator[str]:
    for eqn in Program.of(program).equations:
        yield from (str(variable.aval.dtype) for variable in eqn.outvars if hasattr(variable.aval, "dtype"))
        for nested in programs(eqn):
            yield from _dtypes(nested)
