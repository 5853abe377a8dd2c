"""What a run of a model and a run of a program share: each step is traced and compiled, and what it names is read.

The step of a program is the user's own. That of a model is made of the model, its loss and its optimizer.
"""

import abc
import copy
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Self

import numpy as np

from compare.jax_side.choices import Choice, Choices, add_choices
from compare.jax_side.compiling import compiled, compiled_quickly, compiled_with_values
from compare.jax_side.given import Given, instead
from compare.jax_side.lift import Apart, Tables, traced
from compare.jax_side.lines import constant_lines
from compare.jax_side.moved_functions import FunctionsMoved
from compare.jax_side.primitives import is_key
from compare.jax_side.program import checked_step
from compare.jax_side.program_state import Leaf, Role, path_name, paths_of
from compare.jax_side.reading import ForeignCall, foreign_calls
from compare.jax_side.replay import replayable, replaying
from compare.jax_side.stacks import Stacks
from compare.jax_side.static import all_again, each_once
from compare.jax_side.unjitted import Looked, Remembered, compiled_by_user, fingerprint, looked_at, looking
from compare.jax_side.watching import LiftingWatcher, Seen, Watch, Watcher, sorted_out
from compare.step import host_draws
from compare.step.batch import described
from compare.step.draws import Draw, Hints
from compare.step.observation import Observation
from compare.step.user_code import call_user_code
from compare.weights.layers import Layer


class CommonRun(abc.ABC):
    """A run of the JAX side.

    Args:
        side: A `JaxProgram`, a `Flax` or a `Jax`.
        dtype: "float32" or "float64".
        hints: What is known of the layouts of random draws.

    """

    what: str
    """What a step is called in an error."""
    user_step: Callable[..., Any]
    structure: Any
    """How the state is taken apart into arrays, and put together: a `Structure` or a `ModelStep`."""
    leaves: list[Leaf]
    """The arrays of the state."""
    values: list[Any]
    """What they are now, in this order."""
    written: list[Any]
    """What they are in the program as it is written: see `twins.written`."""
    outermost: Collection[str] = ()
    """The paths of what is the whole model, whose input and output have names of their own."""

    def __init__(self, side: Any, dtype: str, hints: Hints) -> None:
        self.side, self.dtype, self.hints = side, dtype, hints
        self._apart = Apart()
        self.build()
        self.taken = 0
        """How many steps it has taken since its start."""
        self.kinds: dict[str, str] = {}
        """The class of each module that ran, by path, in order of execution; filled by the first step."""
        self.named_as: dict[str, tuple[str, str]] = {}
        """The root and the path in the names of each module that ran, by path."""
        self.unplaced = False
        """See `Watch.unplaced`."""
        self.stacks: Mapping[str, int] = {}
        """The modules whose weights are all stacks of layers, by path, and how many layers."""
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
        """See `drawn`."""
        self._draws: list[Draw] = []  # what torch drew at the step that is taken
        self.chosen: dict[Choice, np.ndarray] = {}
        """Which sides of the choices in the user's code the steps in float64 have taken."""
        self.kept: Remembered | None = None
        """What a step that is traced each time kept in Python before the first."""
        self.compiled_by_user = self.has_compiled_step()
        """Whether the step is compiled as a whole, so that its Python runs once."""
        self._step = self.jitted() if self.compiled_by_user else None
        """One step, compiled; None for one that is traced each time."""
        self._compiled: dict[str, Any] = {}
        """The programs of a step that is traced each time, by their fingerprints."""

    @abc.abstractmethod
    def build(self) -> None:
        """Make the state and the step."""

    def has_compiled_step(self) -> bool:
        """Return whether the step is compiled as a whole."""
        return compiled_by_user(self.user_step)

    def examples(self, batch: Any) -> Any:
        """Return what modules take of a batch, over whose first axes they may be mapped."""
        return batch

    @abc.abstractmethod
    def layers(self) -> list[Layer]:
        """List what holds weights."""

    @abc.abstractmethod
    def arrays(self) -> dict[str, np.ndarray]:
        """Return the weights, buffers and integers of modules, by name."""

    @abc.abstractmethod
    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace some of these, by name."""

    @abc.abstractmethod
    def restart(self) -> None:
        """Start again from the values that the side came with, with what is compiled already."""

    @abc.abstractmethod
    def perturb(self, seed: int, epsilon: float | None = None) -> None:
        """Change weights by a few units in the last place, to measure the effect."""

    @abc.abstractmethod
    def inputs(self, batch: Any) -> Any:
        """Adapt a batch, and give it as arrays of JAX's."""

    @abc.abstractmethod
    def naming(self, state: Any) -> AbstractContextManager[None]:
        """Return the context in which what modules take and give gets its names."""

    @abc.abstractmethod
    def observed(self, shown: Mapping[str, Any], seen: Seen, before: Mapping[str, np.ndarray]) -> Observation:
        """Give what a step shows, and what it has changed since `before`."""

    def described(self, inputs: Any) -> str:
        """Describe a batch in an error; nothing where the step says it."""
        return described(inputs)

    def before(self) -> dict[str, np.ndarray]:
        """Return what a step's updates are measured from, by name; nothing if it shows them."""
        return {}

    def jitted(self) -> Any:
        """Return a step that is compiled when it is first taken."""
        return compiled(self._run)

    def snapshot(self) -> list[Any]:
        """Return the values of the state, to be read after the next step."""
        return list(self.values)

    def compiled_quickly(self) -> Self:
        """Return a run of the same program, to take a step of another form: such a step is compiled once more."""
        other = copy.copy(self)
        if self._step is not None:
            other._step = compiled_quickly(other._run)
        return other

    def taking_values(self) -> Self:
        """Return a run of the same program whose steps are given values in the place of computed ones."""
        other = copy.copy(self)
        if self._step is not None:
            other._step = compiled_with_values(other._run)
        return other

    def precision(self) -> Any:
        """Return the context in which arrays of this run's precision are made."""
        import jax

        return jax.enable_x64(self.dtype == "float64")

    def state_arrays(self) -> dict[str, np.ndarray]:
        """Return what the optimizers remember, by name."""
        return dict(self._named(Role.OPTIMIZER))

    def _named(self, *roles: Role) -> Iterator[tuple[str, np.ndarray]]:
        each = zip(self.leaves, self.values, strict=True)
        chosen = ((leaf.name, value) for leaf, value in each if leaf.role in roles and not is_key(value.dtype))
        return ((name, np.asarray(value)) for name, value in chosen)

    def move_functions(self, draw: int) -> None:
        """Move what functions such as tanh and sums give by their rounding; that is another compiled step."""
        self.functions, self._compiled = draw, {}
        self._step = self.jitted() if self.compiled_by_user else None

    def _run(self, values: list[Any], batch: Any, draws: Any, given: Any, tables: Any) -> Any:
        """Trace the user's step, and run what comes of it with an eye on what is named."""
        program = self._noted(self._traced(self.whole, values, batch, draws))
        return self._watched(program, values, batch, draws, given, tables)

    def whole(self, values: list[Any], batch: Any) -> Any:
        """Take the user's step, from arrays to arrays."""
        state = self.structure.put_together(values)
        with self.naming(state):
            function = functools.partial(self.user_step, state, batch)
            given = call_user_code(self.what, function, given=self.described(batch))
        state, shown = checked_step(given)
        return self.structure.take_apart(state), shown

    def _traced(self, step: Any, values: list[Any], batch: Any, draws: Any) -> tuple[Any, Any]:
        """Return the program of a step, and the shapes of what it gives."""
        unreplayed: list[str] = []

        def program(values: list[Any], batch: Any, draws: Any) -> Any:
            unreplayed.clear()
            return self.replaying(step, draws, unreplayed)(values, batch)

        # JAX caches the trace of a jitted function by the function. Such a trace has the names of this run's tensors in
        # it, or none if the user's code traced it before, so this run has a cache of its own.
        with self._apart.traces():
            found = traced(program, (values, batch, draws), self.pinned, lift=self.dtype == "float64")
        self.unreplayed += unreplayed
        self.foreign |= dict.fromkeys(foreign_calls(found[0]))
        return found

    def replaying(self, step: Any, draws: Any, unreplayed: list[str]) -> Any:
        """Make a step use torch's random numbers while it is traced."""
        self.drawing.clear()
        given = host_draws.Given(self._draws)
        return replaying(step, draws, unreplayed, self.guessed, self.hints, self.drawing, given)

    def drawn(self, inputs: Any) -> tuple[Any, Any]:
        """Return the program of the step that was traced last, as it draws by itself, and the shapes of its outputs.

        Args:
            inputs: What the step was given.

        """
        del inputs
        return self.drawing[-1]

    def _noted(self, program: tuple[Any, Any]) -> tuple[Any, Any]:
        """Note the program of a whole step."""
        self.traces.append(program[0])
        self.outputs = self.outputs or self._output_names(program)
        return program

    def _output_names(self, program: tuple[Any, Any]) -> list[str]:
        _, (_, shown) = program
        return [*(leaf.name for leaf in self.leaves), *map(path_name, paths_of(shown))]

    def _unjitted(self, values: list[Any], batch: Any, draws: Any, given: Any, tables: Any) -> Any:
        """Take a step whose Python code must run each time: trace it again, and compile each distinct trace once."""
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
                self._compiled[key] = compiled((lambda *args, run=run: run(*args)[2]) if stopped else run)
            found = self._compiled[key](values, batch, draws, given, tables)
            if not stopped:
                self._noted(program)
                return found
            del self.unreplayed[missing:]  # the rest of the step has yet to draw
            known.append(looked_at(all_again(found)))
            before.restore()

    def _watched(
        self, program: tuple[Any, Any], values: list[Any], batch: Any, draws: Any, given: Any, tables: Any
    ) -> Any:
        """Run the program of a step, with an eye on what is named."""
        import jax

        closed, shape = program
        arguments = jax.tree.leaves((values, batch, draws))
        if self.functions:
            moved = FunctionsMoved(self.functions, range(len(values)))
            closed = jax.make_jaxpr(functools.partial(moved.step, closed))(arguments)
        stacks = Stacks(self.stacks, self.examples(batch), closed)
        watch = Watch(self.leaves, values, instead(*given), stacks, self.outermost)
        of_tables, choices = Tables(tables[0], self.constants), Choices()
        lifts = self.dtype == "float64"
        watcher = LiftingWatcher(watch, self.pinned, of_tables, choices) if lifts else Watcher(watch)
        outputs = watcher.step(closed, arguments, tables[1])
        self.kinds.update(watch.kinds)
        self.named_as.update(watch.named_as)
        self.unplaced |= watch.unplaced
        after, shown = jax.tree.unflatten(jax.tree.structure(shape), outputs)
        # With another dtype, as a lifted step's counters have, the next step would be compiled again. What a step sets
        # to a constant is a number of Python's. What one module gives is what the next one takes: `each_once`.
        pairs = zip(values, after, strict=True)
        kept = [new if is_key(old.dtype) else jax.numpy.asarray(new, old.dtype) for old, new in pairs]
        return kept, shown, each_once(watcher.shown), choices.made

    def program(self, batch: Any, draws: Sequence[Draw]) -> Any:
        """Return the traced program of the first step that was taken; of none yet, that of a step that is."""
        import jax

        if not self.traces:
            with self.precision():
                jax.eval_shape(self._run, *self._arguments(self.inputs(batch), draws, None))
        return self.traces[0]

    def _arguments(self, inputs: Any, draws: Sequence[Draw], given: Given | None) -> tuple[Any, ...]:
        written = np.int32(self.tables), self.written
        return self.values, inputs, replayable(draws, self.dtype), (given or Given()).arguments(), written

    def step(self, batch: Any, draws: Sequence[Draw] = (), given: Given | None = None) -> Observation:
        """Take one step, and show everything that it changes.

        With values `given`, modules and optimizers take these in the place of what the step computes, as far as they
        can be.
        """
        before, self._draws = self.before(), [draw for draw in draws if not draw.backward]
        with self.precision():
            inputs = self.inputs(batch)
            step = functools.partial(self._step or self._unjitted, *self._arguments(inputs, draws, given))
            self.values, shown, inside, made = call_user_code(self.what, step, given=self.described(inputs))
        self.taken += 1
        add_choices(self.chosen, made)
        return self.observed(shown, sorted_out(all_again(inside)), before)

    def named_constants(self) -> list[str]:
        """Describe what the program holds in float32, once a step was taken, with the user's line that uses it."""
        lines = constant_lines(self.traces[0]) if self.traces else {}
        return [f"{what}, {lines[key]}" if lines.get(key) else what for key, what in self.constants.items()]
