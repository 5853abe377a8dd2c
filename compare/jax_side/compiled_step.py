"""One training step of the JAX side: the function that is traced, and that function compiled."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from compare.jax_side.choices import Choice, Choices
from compare.jax_side.compiling import older_fusions
from compare.jax_side.given import by_port, merged
from compare.jax_side.lift import Tables, lift, traced
from compare.jax_side.mode import with_mode
from compare.jax_side.moved_functions import FunctionsMoved
from compare.jax_side.record import JaxRecord
from compare.jax_side.replay import replaying
from compare.jax_side.side import Flax, Jax
from compare.jax_side.static import static, with_values
from compare.jax_side.twins import beside
from compare.jax_side.widths import of_batch, without_x64
from compare.step.batch import Batch, adapted, called, check_call, checked_loss, described_call, mapped
from compare.step.draws import Hints
from compare.step.observation import Port
from compare.step.places import Source
from compare.step.user_code import call_user_code

_ADVICE = "Adapt the batch with batch= if this side needs another layout or other names"


class CompiledStep:
    """A step of one side in one precision: forward, loss, backward and update as one compiled program."""

    def __init__(
        self, side: Flax | Jax, dtype: str, *, training: bool, keep_modes: bool, unroll: bool, hints: Hints
    ) -> None:
        self.side, self.dtype, self.training = side, dtype, training
        self.unroll, self.hints = unroll, hints
        with self.precision():
            functional = side.functional(dtype, training=training, keep_modes=keep_modes)
            self.params, self.buffers, self.rngs, self._apply, self._called, self._linen = functional
        self.optimizer: Any = side.optimizer
        """The side's, or the same for the parameters alone where it is made for all variables."""
        self.modules: dict[str, Any] = {}
        self.hidden: dict[str, None] = {}
        self.argument_names: dict[str, tuple[str, ...]] = {}
        self.record = JaxRecord()
        """Of the latest trace of the model, also where it ended in an error."""
        self.calls: dict[str, Source | None] = {}
        """The user's line that calls each module."""
        self.unreplayed: list[str] = []
        """Random numbers that only one side draws, as text."""
        self.guessed: list[str] = []
        """Random numbers whose layout is ambiguous."""
        self.pinned: list[str] = []
        """What could not be run in float64, as text."""
        self.constants: dict[bytes, str] = {}
        """What its program holds in float32, besides buffers, once the float64 run is compiled: see `lift.Tables`."""
        self.chosen: dict[Choice, np.ndarray] = {}
        """Which sides of the choices in the user's code the float64 run, and all that share its program, have taken."""
        self.functions = 0
        """Which movement of its functions' last digits it is for, 0 for none: see `moved_functions`."""
        self.takes_values = False
        """Whether values are put into its steps."""
        self.traces: list[Any] = []
        """The float64 run's programs as they were traced, before they were lifted."""

    @functools.cached_property
    def compiled(self) -> Any:
        """One step, compiled. It overwrites parameters and optimizer state: there is memory for one of each."""
        import jax

        def lifted(*arguments: Any) -> Any:
            *others, (tables, written) = arguments
            choices, moved = Choices(), Tables(tables, self.constants)
            step = lift(self._traced, self.pinned, moved, choices, self.traces.append, beside(others[0], written))
            return step(*others), choices.made

        def with_functions_moved(*arguments: Any) -> Any:
            program, shape = traced(self._traced, arguments, self.pinned, lift=False)
            first, second = (len(jax.tree.leaves(each)) for each in arguments[:2])
            moved = FunctionsMoved(self.functions, range(first, first + second))
            outputs = moved.step(program, jax.tree.leaves(arguments))
            return jax.tree.unflatten(jax.tree.structure(shape), outputs)

        # `_traced` is one whole training step. XLA may reuse the memory of donated arguments for the results
        # of the same shape, so that parameters and optimizer state exist once:
        # https://docs.jax.dev/en/latest/faq.html#buffer-donation.
        whole = lifted if self.dtype == "float64" else with_functions_moved if self.functions else self._traced
        return jax.jit(whole, donate_argnums=(0, 3), compiler_options=older_fusions() if self.takes_values else None)

    def precision(self) -> Any:
        """Return the context for all that is done in this run's precision."""
        # Entered for each step: runs in float32 and in float64 alternate.
        import jax

        return jax.enable_x64(self.dtype == "float64")

    def _forward(
        self, params: Any, buffers: Any, rngs: Any, inputs: Any, given: Mapping[Port, tuple[Any, Any]] | None = None
    ) -> tuple[Any, tuple[list[Any], Any], Any, Any]:
        """Run the model; the second of what it gives is what its modules take and give, see `static.by_port`."""
        record = self.record = JaxRecord(given)
        args, kwargs = with_values(inputs)
        call = f"the {self.side.name} model"
        check_call(call, self._called, args, with_mode(self._called, args, kwargs, self.training), _ADVICE)
        output, buffers, rngs = call_user_code(
            call,
            functools.partial(self._apply, params, buffers, rngs, args, kwargs, record),
            given=described_call(args, kwargs),
            inside=lambda: record.running,
            advice=lambda error: _ADVICE if isinstance(error, TypeError | ValueError) else "",
        )
        self.modules, self.hidden, self.argument_names = record.modules, record.hidden, record.arguments
        self.calls = record.calls
        # A tensor that one module gives and the next takes is one output of the program, under several names:
        # two copies of every activation would double the memory of a step.
        shown = {id(array): array for array in record.seen.values()}
        numbers = {key: number for number, key in enumerate(shown)}
        # The names are static data of the compiled program: with inputs of another shape, other modules may run.
        ports = static(tuple((port, numbers[id(array)]) for port, array in record.seen.items()))
        return output, (list(shown.values()), ports), buffers, rngs

    def with_loss(
        self, params: Any, buffers: Any, rngs: Any, inputs: Any, target: Any, ports: Any = None
    ) -> tuple[Any, tuple[Any, Any, Any]]:
        """Run the model and the loss, as JAX traces them; give the loss and all that they show."""
        output, shown, after, generators = self._forward(params, buffers, rngs, inputs, ports)
        loss = None
        if self.side.loss is not None:
            loss = checked_loss(self.side.name, self.side.loss, output, with_values(target))
        return loss, (shown, after, generators)

    def alone(self, params: Any, inputs: Any, target: Any) -> Any:
        """Run the model and the loss with this run's buffers and generators: constants of the program that is traced.

        They are in the precision that it is traced in, which may be another than this run's: see `traced_alone`.
        """
        import jax

        kept = self.buffers, self.rngs
        if not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
            kept = jax.tree.map(without_x64, kept)
        return self.with_loss(params, *kept, inputs, target)

    def traced_alone(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Trace a part of the step by itself: in float64 only where the whole step can be traced so, as `lift` says."""
        with self.precision():
            return traced(function, arguments, [], lift=self.dtype == "float64")[0]

    def _traced(
        self, params: Any, buffers: Any, rngs: Any, state: Any, inputs: Any, target: Any, draws: Any, given: Any
    ) -> Any:
        """One step, as JAX compiles it."""
        import jax
        import optax

        def model(params: Any) -> Any:
            ports = by_port(*given[:2]) if given else None
            return self.with_loss(params, buffers, rngs, inputs, target, ports)

        compute = replaying(model, draws, self.unreplayed, self.guessed, self.hints)
        # Under disable_jit, lax.scan runs as a Python loop, so that each layer in a scan is seen as a module's call.
        # The trace around it still makes one program.
        with jax.disable_jit(self.unroll):
            if self.side.loss is None:
                _, (seen, buffers, rngs) = compute(params)
                return None, (), (), params, buffers, rngs, state, seen
            # The replay is inside value_and_grad: custom derivatives of what it runs again are still those of the
            # user's code.
            (loss, (seen, buffers, rngs)), gradients = jax.value_and_grad(compute, has_aux=True)(params)
            updates: Any = ()
            if self.side.optimizer is not None:
                # With values given, the optimizer gets torch's gradients, and its updates differ only by what the
                # optimizer does.
                taken = merged(gradients, *given[2:]) if given else gradients
                updates, state = self.updates(taken, loss, state, params)
                apply = functools.partial(optax.apply_updates, params, updates)
                params = call_user_code(f"applying the updates of the {self.side.name} optimizer", apply)
        return loss, gradients, updates, params, buffers, rngs, state, seen

    def updates(self, gradients: Any, loss: Any, state: Any, params: Any) -> tuple[Any, Any]:
        """Call the optimizer, with the loss too if it takes that, as `optax.contrib.reduce_on_plateau` does."""
        import optax

        optimizer: Any = self.optimizer
        more = (
            {"value": loss, "grad": gradients} if isinstance(optimizer, optax.GradientTransformationExtraArgs) else {}
        )
        update = functools.partial(optimizer.update, gradients, state, params, **more)
        return call_user_code(f"the {self.side.name} optimizer's update", update)

    def arguments(self, batch: Batch) -> tuple[Any, Any]:
        """Adapt a batch and give its inputs, as `(args, kwargs)`, and its target."""

        def convert(array: Any) -> Any:
            if isinstance(array, bool | str):
                return static(array)
            return of_batch(array, self.dtype)

        inputs, target = adapted(batch, self.side.batch)
        return called(inputs, convert), mapped(target, convert)
