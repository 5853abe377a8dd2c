"""A training run of a model on the JAX side: a program's run, whose step is made of the model, loss and optimizer."""

import contextlib
import copy
import functools
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from compare.jax_side.common_run import CommonRun
from compare.jax_side.compiling import compiled
from compare.jax_side.computed import Computed
from compare.jax_side.full_float32 import in_full_float32
from compare.jax_side.functional import cast
from compare.jax_side.given import Given
from compare.jax_side.lift import traced
from compare.jax_side.made import noted
from compare.jax_side.model_step import ModelState, ModelStep
from compare.jax_side.naming import naming
from compare.jax_side.primitives import Program, programs
from compare.jax_side.record import JaxRecord, Ran
from compare.jax_side.replay import replayable, replaying
from compare.jax_side.side import Flax, Jax
from compare.jax_side.static import static
from compare.jax_side.twins import written
from compare.jax_side.watching import Seen
from compare.jax_side.widths import of_batch
from compare.numerics.distance import ULPS
from compare.numerics.tables import movement
from compare.step.batch import Batch, adapted, called, mapped
from compare.step.draws import NO_HINTS, Draw, Hints
from compare.step.observation import Observation, Port
from compare.step.user_code import call_user_code
from compare.weights.layers import Layer


class JaxRun(CommonRun):
    """A training run of a model from the given weights, in one precision."""

    side: Any
    """A `Flax` or a `Jax`."""
    structure: ModelStep
    _step: Any

    def __init__(
        self,
        side: Flax | Jax,
        dtype: str,
        *,
        training: bool,
        keep_modes: bool = False,
        widen: bool = False,
        hints: Hints = NO_HINTS,
    ) -> None:
        self.training, self.keep_modes, self._widen = training, keep_modes, widen
        self.what = f"a step of the {side.name} side"
        super().__init__(side, dtype, hints)

    def build(self) -> None:
        """Make the model a function of arrays, and the step."""
        with self.precision():
            structure = ModelStep(self.side, self.dtype, training=self.training, keep_modes=self.keep_modes)
            if self._widen:
                structure.state = structure.state._replace(params=cast(structure.state.params, self.dtype))
            self.structure, self.user_step, self._start = structure, structure, structure.state
        self.outermost = _around(self.param_names)
        self.restart()

    def jitted(self) -> Any:
        """Return a step that overwrites the state that it takes."""
        return compiled(self._run, overwriting=True)

    def snapshot(self) -> list[Any]:
        """Copy the values of the state, which the next step overwrites."""
        import jax

        return jax.device_put(self.values, may_alias=False)

    def has_compiled_step(self) -> bool:
        """Return True: the step is compiled here, as a training loop does it."""
        return True

    def _started(self, state: ModelState) -> None:
        """Start from a state."""
        self.structure.state = state
        self.leaves, self.values = self.structure.leaves(state), self.structure.take_apart(state)
        buffers = written(state.buffers)
        rest = len(self.values) - len(self.param_names) - len(buffers)
        # What its buffers are in the program as it is written; weights have no such: see `twins.written`.
        self.written = [*(None for _ in self.param_names), *buffers, *(None for _ in range(rest))]

    def restart(self) -> None:
        """Start again from the weights that the port came with, with what is compiled already."""
        import jax

        self._started(jax.device_put(self._start, may_alias=False))

    @property
    def state(self) -> ModelState:
        """Its current state."""
        return self.structure.put_together(self.values)

    @property
    def param_names(self) -> list[str]:
        """Of its parameters, in their order."""
        return self.structure.param_names

    @property
    def buffer_names(self) -> list[str]:
        """Of its buffers, in their order."""
        return self.structure.buffer_names

    @property
    def state_names(self) -> list[str]:
        """Of what its optimizer remembers, in their order."""
        return self.structure.names_of(self.state.optimizer)

    def layers(self) -> list[Layer]:
        """List the modules that hold weights."""
        found: list[Layer] = self.side.layers()
        return found

    def arrays(self) -> dict[str, np.ndarray]:
        """Return parameters and buffers by name."""
        import jax

        state = self.state
        return {
            name: np.asarray(leaf)
            for tree, named in ((state.params, self.param_names), (state.buffers, self.buffer_names))
            for name, leaf in zip(named, jax.tree.leaves(tree), strict=True)
        }

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace parameters and buffers, by name; the optimizer's state starts afresh."""
        state = self.state
        with self.precision():
            params = _replaced(state.params, self.param_names, arrays)
            buffers = _replaced(state.buffers, self.buffer_names, arrays)
            optimizer = self.structure.initialized(params)
            if self.dtype == "float64":  # what it keeps in fewer bits, as by mu_dtype=, is lifted as all else
                optimizer = cast(optimizer, self.dtype)
        self._started(state._replace(params=params, buffers=buffers, optimizer=optimizer))

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace the optimizer's state, by name."""
        state = self.state
        with self.precision():
            optimizer = _replaced(state.optimizer, self.state_names, arrays)
            self.values = self.structure.take_apart(state._replace(optimizer=optimizer))

    def perturb(self, seed: int, epsilon: float | None = None) -> None:
        """Change parameters by a few units in the last place, to measure the effect; the optimizer starts again."""
        noise, ulps = np.random.default_rng(seed), ULPS * (epsilon or float(np.finfo(self.dtype).eps))
        moved = {name: array for name, array in self.arrays().items() if name in self.param_names}
        self.load({name: array * (1 + noise.choice((-ulps, ulps), array.shape)) for name, array in moved.items()})

    def move_tables(self, draw: int, names: Container[str]) -> None:
        """Move some of the buffers, and what the program holds, by the float32 rounding that is in them."""
        self.tables, before = draw, self.written
        moved = {name: array for name, array in self.arrays().items() if name in names}
        self.load({name: array + movement(array, draw) for name, array in moved.items()})
        self.written = before

    def inputs(self, batch: Batch) -> Any:
        """Adapt a batch and give its inputs, as `(args, kwargs)`, and its target."""

        def convert(array: Any) -> Any:
            if isinstance(array, bool | str):
                return static(array)
            return of_batch(array, self.dtype)

        inputs, target = adapted(batch, self.side.batch)
        return called(inputs, convert), mapped(target, convert)

    def examples(self, batch: Any) -> Any:
        """Return the inputs."""
        return batch[0]

    def naming(self, state: Any) -> contextlib.AbstractContextManager[None]:
        """Return the context in which what modules take and give gets its names."""
        self.structure.record = JaxRecord()
        return naming(state, self.structure.record)

    def replaying(self, step: Any, draws: Any, unreplayed: list[str]) -> Any:
        """Make the model and its loss use torch's random numbers, before they are differentiated.

        What is differentiated may draw elsewhere: out of a scan, whose iterations draw with one key.
        """
        replay = functools.partial(
            replaying, values=draws, unreplayed=unreplayed, guessed=self.guessed, hints=self.hints
        )

        def replayed(values: Any, batch: Any) -> Any:
            self.structure.replaying = replay
            try:
                return step(values, batch)
            finally:
                self.structure.replaying = None

        return replayed

    def drawn(self, inputs: Any) -> tuple[Any, Any]:
        """Return the program of the model and its loss, as they draw by themselves, and the shapes of its outputs."""

        def evaluated(values: Any, inputs: Any) -> Any:
            before = self.structure.put_together(values)
            with self.naming(before):
                state, shown = self.structure.evaluated(before, inputs)
            return self.structure.take_apart(state), shown

        with self.precision():
            return traced(evaluated, (self.values, inputs), [], lift=self.dtype == "float64")

    def described(self, inputs: Any) -> str:
        """Describe nothing: the call of the model describes the batch as the model gets it."""
        return ""

    def observed(self, shown: Mapping[str, Any], seen: Seen, before: Mapping[str, np.ndarray]) -> Observation:
        """Give what a step shows, under the names of parameters and buffers."""
        import jax

        def named(tree: Any, names: Sequence[str]) -> dict[str, Any]:
            return dict(zip(names, jax.tree.leaves(tree), strict=True))

        state, trained = self.state, self.side.optimizer is not None
        return Observation(
            loss=shown.get("loss"),
            gradients=named(shown["gradients"], self.param_names) if "gradients" in shown else {},
            updates=named(shown["updates"], self.param_names) if "updates" in shown else {},
            parameters=named(state.params, self.param_names) if trained else {},
            optimizer=named(state.optimizer, self.state_names) if trained else {},
            buffers=named(state.buffers, self.buffer_names),
            forward=seen.forward,
        )

    def taking(self, step: Callable[..., Any]) -> Self:
        """Return a run whose step is another one of the model's: `ModelStep.evaluated` or `ModelStep.forward`."""
        other = copy.copy(self)
        other.user_step, other.traces, other.outputs, other.chosen = step, [], [], {}
        other._step = compiled(other._run)
        return other

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
        step = self.structure.forward
        run = self.taking(in_full_float32(step) if full else step)
        run.unreplayed, run.guessed, run.pinned = [], [], []
        run = run.taking_values() if given else run
        forward: dict[Port, Any] = dict(run.step(batch, draws, Given(ports=given or {})).forward)
        return forward

    def compile(self, batch: Batch, draws: Sequence[Draw]) -> None:
        """Compile a step before it is taken. With random numbers of other kinds or shapes, it is once more."""
        with self.precision():
            arguments = self._arguments(self.inputs(batch), draws, None)
            call_user_code(self.what, functools.partial(self._step.lower, *arguments)).compile()

    def probe(self, batch: Batch) -> "Probe":
        """Trace the forward pass, without running it, to see which modules it calls and which dtypes it has."""
        run = self.taking(self.structure.forward)
        # Nothing may keep this program, as a run and `jax.jit` would: as long as there is a program in float32 with a
        # NumPy array of float64 as a constant, JAX takes the float32 copy for the array in float64 too.
        with self.precision(), noted():  # Linen makes its modules while it is traced
            found = run._traced(run.whole, self.values, self.inputs(batch), replayable((), self.dtype))
        computed = Computed(found[0], self.leaves, self._output_names(found), self.outermost)
        record = self.structure.record
        ran = {path: _together([record.ran[key] for key in keys]) for path, keys in computed.modules.items()}
        return Probe(computed, frozenset(_dtypes(found[0])), ran, record.shapes)


class Probe(NamedTuple):
    """What the trace of a forward pass shows."""

    computed: Computed
    """What is computed between the modules."""
    dtypes: frozenset[str]
    """Of everything that is computed."""
    modules: Mapping[str, Ran]
    """Those that ran, by path, in order of first execution."""
    shapes: Mapping[Port, tuple[int, ...]]
    """Of what modules take and give outside of transformations."""


def _together(calls: Sequence[Ran]) -> Ran:
    """Give what is known of a module of which several calls have names of their own."""
    found = calls[0]
    for each in calls[1:]:
        found = found.also(inside=each.inside, called=each.called)
    return found


def _around(names: Sequence[str]) -> frozenset[str]:
    """Return the paths that all names begin with, "" among them."""
    parts = names[0].split("/")[:-1] if names else []
    paths = ("/".join(parts[:depth]) for depth in range(1, len(parts) + 1))
    return frozenset(("", *(path for path in paths if all(name.startswith(f"{path}/") for name in names))))


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


def _dtypes(program: Any) -> Iterator[str]:
    for eqn in Program.of(program).equations:
        yield from (str(variable.aval.dtype) for variable in eqn.outvars if hasattr(variable.aval, "dtype"))
        for nested in programs(eqn):
            yield from _dtypes(nested)
