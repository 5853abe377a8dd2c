"""A run of a JAX program, in one precision: each step is the user's own, traced and compiled."""

import functools
from collections.abc import Container, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from compare.jax_side.common_run import CommonRun
from compare.jax_side.layers import nnx_layers, state_layers, under
from compare.jax_side.lift_modules import lift_nnx
from compare.jax_side.linen_collections import with_collections
from compare.jax_side.naming import naming
from compare.jax_side.program import JaxProgram, built, shown_gradients
from compare.jax_side.program_state import (
    Role,
    Structure,
    counted,
    meant,
    unshared,
)
from compare.jax_side.record import JaxRecord, Ran
from compare.jax_side.twins import written
from compare.jax_side.unjitted import Remembered
from compare.jax_side.watching import Seen
from compare.jax_side.widths import of_batch
from compare.numerics.distance import ULPS
from compare.step.batch import checked_scalar, mapped
from compare.step.draws import NO_HINTS, Hints
from compare.step.observation import Observation
from compare.step.user_code import call_user_code
from compare.weights.layers import Layer, Tensor


class JaxProgramRun(CommonRun):
    """A run of a JAX program.

    Args:
        side: The program. It is built with 32-bit numbers, as the user runs it; floating-point ones are then cast.
        dtype: "float32" or "float64".
        hints: What is known of the layouts of random draws.

    Raises:
        InputError: If `build` does not give a state and a step.

    """

    side: JaxProgram
    what = "the JAX step"

    def __init__(self, side: JaxProgram, dtype: str, hints: Hints = NO_HINTS) -> None:
        self._record = JaxRecord()
        super().__init__(side, dtype, hints)
        integers = (name for layer in self.layers() for name in layer.settings.get("integers", ()))
        self._of_modules = {*self.weights(), *integers}

    def build(self) -> None:
        """Build the program, with the arrays of its state in the precision of this run."""
        import jax

        with jax.enable_x64(False):
            state, self.user_step = built(self.side)
            self.user_state = state = unshared(state)
            structure = Structure(state)
            arrays = structure.take_apart(state)
            if self.dtype == "float64":
                for value in structure.objects.values():
                    if hasattr(value, "__dict__"):
                        lift_nnx(value)
                structure = Structure(state)
        self.structure, self.leaves = structure, structure.leaves
        with self.precision():
            self._start = [self._cast(meant(array) if self.dtype == "float64" else array) for array in arrays]
        self.values, self.written = list(self._start), written(self._start)

    def restart(self) -> None:
        """Start again from the values that `build` made, with what is compiled already.

        A step that is traced each time is built anew: it may count in Python.
        """
        import jax

        if not self.compiled_by_user:
            with jax.enable_x64(False):
                _, self.user_step = built(self.side)
            self.kept = Remembered(self.user_step)
        self.values, self.written, self.taken = list(self._start), written(self._start), 0

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

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace weights, by name."""
        with self.precision():
            self.values = [
                self._cast(np.array(arrays[leaf.name])) if leaf.name in arrays else value
                for leaf, value in zip(self.leaves, self.values, strict=True)
            ]
        self.written = [
            np.asarray(arrays[leaf.name], np.float32) if twin is not None and leaf.name in arrays else twin
            for leaf, twin in zip(self.leaves, self.written, strict=True)
        ]

    def perturb(self, seed: int, epsilon: float | None = None) -> None:
        """Change weights by a few units in the last place, to measure the effect."""
        noise, ulps = np.random.default_rng(seed), ULPS * (epsilon or float(np.finfo(self.dtype).eps))
        self.load({n: array * (1 + noise.choice((-ulps, ulps), array.shape)) for n, array in self.weights().items()})

    def move_tables(self, draw: int, names: Container[str]) -> None:
        """Move what the program holds in float32 by the rounding that is in it; none of its arrays is known as such."""
        del names
        self.tables = draw

    def inputs(self, batch: Any) -> Any:
        """Adapt a batch, and give it as arrays of JAX's."""
        adapt = self.side.batch
        adapted = batch if adapt is None else call_user_code("batch=", functools.partial(adapt, batch))
        return mapped(adapted, functools.partial(of_batch, dtype=self.dtype))

    def naming(self, state: Any) -> AbstractContextManager[None]:
        """Return the context in which what modules take and give gets its names."""
        return naming(state, self._record)

    def module(self, path: str) -> Ran | None:
        """Give what is known of a module that ran, by its path; None if nothing is, as before a step was taken."""
        return self._record.ran.get(self.named_as.get(path, ("", "")))

    def before(self) -> dict[str, np.ndarray]:
        """Return what a step's updates are measured from."""
        return self.weights()

    def observed(self, shown: Mapping[str, Any], seen: Seen, before: Mapping[str, np.ndarray]) -> Observation:
        """Give what a step shows and what it has changed."""
        if "loss" in shown:
            checked_scalar('the "loss" of the JAX step', shown["loss"])
        after = self.weights()
        # The difference of the state, since a program's own updates are not visible: optax.apply_updates is
        # only one way.
        updates = {name: after[name] - old for name, old in before.items()}
        pairs = zip(self.leaves, self.values, strict=True)
        return Observation(
            loss=shown.get("loss"),
            gradients={**seen.gradients, **shown_gradients(shown.get("gradients"), [*after])},
            updates=updates,
            parameters=after,
            optimizer={leaf.name: value for leaf, value in pairs if leaf.role == Role.OPTIMIZER},
            buffers=after,
            state=after,
            counts=counted(self.leaves, self.values, self._start),
            shown={name: value for name, value in shown.items() if name not in ("loss", "gradients")},
            forward=seen.forward,
        )
