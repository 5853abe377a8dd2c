"""A run of a JAX program, in one precision: each step is the user's own, traced and compiled."""

import copy
import functools
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from compare.jax_side.choices import Choice, Choices, add_choices
from compare.jax_side.compiling import compiled_quickly
from compare.jax_side.layers import nnx_layers, state_layers, under
from compare.jax_side.lift import Apart, Tables, traced
from compare.jax_side.lift_modules import lift_nnx
from compare.jax_side.linen_collections import with_collections
from compare.jax_side.moved_functions import FunctionsMoved
from compare.jax_side.naming import naming
from compare.jax_side.primitives import is_key
from compare.jax_side.program import JaxProgram, built, checked_step, shown_gradients
from compare.jax_side.program_state import Role, Structure, counted, meant, nnx_objects, path_name, paths_of, unshared
from compare.jax_side.reading import ForeignCall, foreign_calls
from compare.jax_side.replay import replayable, replaying
from compare.jax_side.twins import written
from compare.jax_side.unjitted import Looked, Remembered, compiled_by_user, fingerprint, looked_at, looking
from compare.jax_side.watching import LiftingWatcher, Watch, Watcher, sorted_out
from compare.jax_side.widths import of_batch
from compare.numerics.distance import ULPS
from compare.step.batch import checked_scalar, described, mapped
from compare.step.draws import NO_HINTS, Draw, Hints
from compare.step.host_draws import Given
from compare.step.observation import Observation
from compare.step.user_code import call_user_code
from compare.weights.layers import Layer, Tensor


class JaxProgramRun:
    """A run of a JAX program.

    Args:
        side: The program. It is built with 32-bit numbers, as the user runs it; floating-point ones are then cast.
        dtype: "float32" or "float64".
        hints: What is known of the layouts of random draws.

    Raises:
        InputError: If `build` does not give a state and a step.

    """

    def __init__(self, side: JaxProgram, dtype: str, hints: Hints = NO_HINTS) -> None:
        import jax

        self.side, self.dtype, self.hints = side, dtype, hints
        self._apart = Apart()
        with jax.enable_x64(False):
            state, self.user_step = built(side)
            self.user_state = state = unshared(state)
            self.structure = Structure(state)
            arrays = self.structure.take_apart(state)
            if dtype == "float64":
                for value in self.structure.objects.values():
                    if hasattr(value, "__dict__"):
                        lift_nnx(value)
                self.structure = Structure(state)
        self.leaves = self.structure.leaves
        with self.precision():
            self._start = [self._cast(meant(array) if dtype == "float64" else array) for array in arrays]
        self.values, self._written = list(self._start), written(self._start)
        self.taken = 0
        """How many steps it has taken since its start."""
        integers = (name for layer in self.layers() for name in layer.settings.get("integers", ()))
        self._of_modules = {*self.weights(), *integers}
        self.kinds: dict[str, str] = {}
        """The class of each module that ran, by path, in order of execution; filled by the first step."""
        self.pinned: list[str] = []
        """What could not be run in float64, as text."""
        self.unreplayed: list[str] = []
        """Random numbers that only one side draws, as text."""
        self.guessed: list[str] = []
        self.constants: dict[bytes, str] = {}
        """What its program holds in float32, once the float64 run is compiled: see `lift.Tables`."""
        self.functions = 0
        """Which movement of its functions' last digits it is for, 0 for none: see `move_functions`."""
        self.tables = 0
        """Which movement of its float32 tables it is for, 0 for none."""
        self.foreign: dict[ForeignCall, None] = {}
        """Calls out of the program, for Python or another library."""
        self.traces: list[Any] = []
        """The programs of its steps as they were traced, before they were lifted."""
        self.outputs: list[str] = []
        """The names of what the first step gives: of the state's arrays, and of what it shows."""
        self.drawing: list[tuple[Any, Any]] = []
        """The program of the step that was traced last, as it draws by itself, and the shapes of what it gives."""
        self._draws: list[Draw] = []  # what torch drew at the step that is taken
        self.chosen: dict[Choice, np.ndarray] = {}
        """Which sides of the choices in the user's code the steps in float64 have taken."""
        self.kept: Remembered | None = None
        """What a step that is traced each time kept in Python before the first."""
        self.compiled_by_user = compiled_by_user(self.user_step)
        """Whether the step is compiled as a whole, so that its Python runs once."""
        self._step = jax.jit(self._run) if self.compiled_by_user else None
        """One step, compiled; None for one that is traced each time."""
        self._compiled: dict[str, Any] = {}
        """The programs of a step that is traced each time, by their fingerprints."""

    def compiled_quickly(self) -> "JaxProgramRun":
        """Return a run of the same program, to take a step of another form: such a step is compiled once more."""
        other = copy.copy(self)
        if self._step is not None:
            other._step = compiled_quickly(other._run)
        return other

    def restart(self) -> None:
        """Start again from the values that `build` made, with what is compiled already.

        A step that is traced each time is built anew: it may count in Python.
        """
        import jax

        if not self.compiled_by_user:
            with jax.enable_x64(False):
                _, self.user_step = built(self.side)
            self.kept = Remembered(self.user_step)
        self.values, self._written, self.taken = list(self._start), written(self._start), 0

    def precision(self) -> Any:
        """Return the context in which arrays of this run's precision are made."""
        import jax

        return jax.enable_x64(self.dtype == "float64")

    def _cast(self, array: Any) -> Any:
        import jax
        import jax.numpy as jnp

        if isinstance(array, bool | int | float):
            array = np.asarray(array, np.float64 if isinstance(array, float) else np.int32)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            # What numbers of Python's made is weakly typed: in float64, one added to it would be an int64.
            weak = self.dtype == "float64" and getattr(array, "weak_type", False)
            return jnp.asarray(np.asarray(array) if weak else array)
        return jax.device_put(np.asarray(array, np.float64).astype(self.dtype))

    def layers(self) -> list[Layer]:
        """List what holds weights: the state's modules, and its other arrays."""
        from flax import nnx

        found: list[Layer] = []
        inside: set[str] = set()
        for root, value in self.structure.objects.items():
            if isinstance(value, nnx.Module):
                found += [under(root, layer) for layer in nnx_layers(value)]
                inside.update(name for layer in found for name in layer.tensors)
        rest = {
            leaf.path: Tensor(tuple(np.shape(value)), leaf.buffer)
            for leaf, value in zip(self.leaves, self.values, strict=True)
            if leaf.role == Role.WEIGHTS and leaf.name not in inside
        }
        return [*found, *with_collections(state_layers(self.user_state, rest))]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the weights and the integers of modules, by name."""
        return {name: array for name, array in self._named(Role.WEIGHTS, Role.OTHER) if name in self._of_modules}

    def weights(self) -> dict[str, np.ndarray]:
        """Return the weights by name."""
        return dict(self._named(Role.WEIGHTS))

    def _named(self, *roles: Role) -> Iterator[tuple[str, np.ndarray]]:
        each = zip(self.leaves, self.values, strict=True)
        chosen = ((leaf.name, value) for leaf, value in each if leaf.role in roles and not is_key(value.dtype))
        return ((name, np.asarray(value)) for name, value in chosen)

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace weights, by name."""
        with self.precision():
            self.values = [
                self._cast(np.array(arrays[leaf.name])) if leaf.name in arrays else value
                for leaf, value in zip(self.leaves, self.values, strict=True)
            ]
        self._written = [
            np.asarray(arrays[leaf.name], np.float32) if twin is not None and leaf.name in arrays else twin
            for leaf, twin in zip(self.leaves, self._written, strict=True)
        ]

    def state_arrays(self) -> dict[str, np.ndarray]:
        """Return what the optimizers remember, by name."""
        return dict(self._named(Role.OPTIMIZER))

    def perturb(self, seed: int, epsilon: float | None = None) -> None:
        """Change weights by a few units in the last place, to measure the effect."""
        noise, ulps = np.random.default_rng(seed), ULPS * (epsilon or float(np.finfo(self.dtype).eps))
        self.load({n: array * (1 + noise.choice((-ulps, ulps), array.shape)) for n, array in self.weights().items()})

    def move_functions(self, draw: int) -> None:
        """Move what functions such as tanh and sums give by their rounding; that is another compiled step."""
        import jax

        self.functions, self._compiled = draw, {}
        self._step = jax.jit(self._run) if self.compiled_by_user else None

    def move_tables(self, draw: int, names: Container[str]) -> None:
        """Move what the program holds in float32 by the rounding that is in it; none of its arrays is known as such."""
        del names
        self.tables = draw

    def _run(self, values: list[Any], batch: Any, draws: Any, gradients: Any, tables: Any) -> Any:
        """Trace the user's step, and run what comes of it with an eye on what is named."""
        program = self._noted(self._traced(self.whole, values, batch, draws))
        return self._watched(program, values, batch, draws, gradients, tables)

    def whole(self, values: list[Any], batch: Any) -> Any:
        """Take the user's step, from arrays to arrays."""
        state = self.structure.put_together(values)
        with naming(nnx_objects(state), self.structure.linen):
            function = functools.partial(self.user_step, state, batch)
            given = call_user_code("the JAX step", function, given=described(batch))
        state, shown = checked_step(given)
        return self.structure.take_apart(state), shown

    def _traced(self, step: Any, values: list[Any], batch: Any, draws: Any) -> tuple[Any, Any]:
        """Return the program of a step, and the shapes of what it gives."""
        unreplayed: list[str] = []

        def program(values: list[Any], batch: Any, draws: Any) -> Any:
            unreplayed.clear()
            self.drawing.clear()
            given = Given(self._draws)
            return replaying(step, draws, unreplayed, self.guessed, self.hints, self.drawing, given)(values, batch)

        # JAX caches the trace of a jitted function by the function. Such a trace has the names of this run's tensors in
        # it, or none if the user's code traced it before, so this run has a cache of its own.
        with self._apart.traces():
            found = traced(program, (values, batch, draws), self.pinned, lift=self.dtype == "float64")
        self.unreplayed += unreplayed
        self.foreign |= dict.fromkeys(foreign_calls(found[0]))
        return found

    def _noted(self, program: tuple[Any, Any]) -> tuple[Any, Any]:
        """Note the program of a whole step."""
        closed, (_, shown) = program
        self.traces.append(closed)
        self.outputs = self.outputs or [*(leaf.name for leaf in self.leaves), *map(path_name, paths_of(shown))]
        return program

    def _unjitted(self, values: list[Any], batch: Any, draws: Any, gradients: Any, tables: Any) -> Any:
        """Take a step whose Python code must run each time: trace it again, and compile each distinct trace once."""
        import jax

        known, before = list[Any](), Remembered(self.user_step)
        while True:
            stopped: list[Looked] = []

            def step(values: list[Any], batch: Any, stopped: list[Looked] = stopped) -> Any:
                try:
                    with looking(known):
                        return self.whole(values, batch)
                except Looked as looked:
                    stopped.append(looked)
                    return list(values), {}

            missing = len(self.unreplayed)
            program = self._traced(step, values, batch, draws)
            run = functools.partial(self._watched, program)
            key = fingerprint(program[0])
            if key not in self._compiled:
                # A step that stopped at a value computes only that value: XLA removes the rest of the program.
                self._compiled[key] = jax.jit((lambda *args, run=run: run(*args)[2]) if stopped else run)
            found = self._compiled[key](values, batch, draws, gradients, tables)
            if not stopped:
                self._noted(program)
                return found
            del self.unreplayed[missing:]  # the rest of the step has yet to draw
            known.append(looked_at(found))
            before.restore()

    def _watched(
        self, program: tuple[Any, Any], values: list[Any], batch: Any, draws: Any, gradients: Any, tables: Any
    ) -> Any:
        """Run the program of a step, with an eye on what is named."""
        import jax

        closed, shape = program
        arguments = jax.tree.leaves((values, batch, draws))
        if self.functions:
            moved = FunctionsMoved(self.functions, range(len(values)))
            closed = jax.make_jaxpr(functools.partial(moved.step, closed))(arguments)
        watch = Watch([(leaf.name, value) for leaf, value in zip(self.leaves, values, strict=True)], gradients)
        watcher: LiftingWatcher | Watcher = Watcher(watch)
        choices = Choices()
        if self.dtype == "float64":
            watcher = LiftingWatcher(watch, self.pinned, Tables(tables[0], self.constants), choices)
        outputs = watcher.step(closed, arguments, tables[1])
        self.kinds.update(watch.kinds)
        after, shown = jax.tree.unflatten(jax.tree.structure(shape), outputs)
        # A lifted step may return float64 where the state has float32 counters: the next one would be compiled again.
        # A step that gives back another dtype, as a number added to a counter does, would be compiled again each time.
        kept = [new if is_key(old.dtype) else new.astype(old.dtype) for old, new in zip(values, after, strict=True)]
        return kept, shown, watcher.shown, choices.made

    def program(self, *_: Any) -> Any:
        """Return the traced program of the first step that was taken."""
        return self.traces[0]

    def step(
        self, batch: Any, draws: Sequence[Draw] = (), gradients: Mapping[str, np.ndarray] | None = None
    ) -> Observation:
        """Take one step, and show everything that it changes.

        With `gradients`, optimizers are given these in the place of what the step computes, as far as they can be.
        """
        before, self._draws = self.weights(), [draw for draw in draws if not draw.backward]
        with self.precision():
            inputs = self.inputs(batch)
            step = functools.partial(
                self._step or self._unjitted,
                self.values,
                inputs,
                replayable(draws, self.dtype),
                dict(gradients or {}),
                (np.int32(self.tables), self._written),
            )
            self.values, shown, inside, made = call_user_code("the JAX step", step, given=described(inputs))
        self.taken += 1
        add_choices(self.chosen, made)
        if "loss" in shown:
            checked_scalar('the "loss" of the JAX step', shown["loss"])
        seen, after = sorted_out(inside), self.weights()
        # The difference of the state, since a program's own updates are not visible: optax.apply_updates is
        # only one way.
        updates = {name: after[name] - old for name, old in before.items()}
        pairs = zip(self.leaves, self.values, strict=True)
        gradients = {**seen.gradients, **shown_gradients(shown.get("gradients"), [*after])}
        return Observation(
            loss=shown.get("loss"),
            gradients=gradients,
            updates=updates,
            parameters=after,
            optimizer={leaf.name: value for leaf, value in pairs if leaf.role == Role.OPTIMIZER},
            buffers=after,
            state=after,
            counts=counted(self.leaves, self.values, self._start),
            shown={name: value for name, value in shown.items() if name not in ("loss", "gradients")},
            forward=seen.forward,
        )

    def inputs(self, batch: Any) -> Any:
        """Adapt a batch, and give it as arrays of JAX's."""
        adapt = self.side.batch
        adapted = batch if adapt is None else call_user_code("batch=", functools.partial(adapt, batch))
        return mapped(adapted, functools.partial(of_batch, dtype=self.dtype))
