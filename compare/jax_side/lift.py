"""Runs the JAX side entirely in float64, whatever precision the user's code sets.

`jax.enable_x64` and float64 arguments are not enough: modules built with `dtype=jnp.float32`, `.astype(jnp.bfloat16)`
and literals that are already rounded stay in low precision. So a step is traced, in float64 as far as its code allows,
and the traced program is run again with every lower precision replaced by float64.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from compare.errors import InputError, told
from compare.jax_side.choices import Choices
from compare.jax_side.jaxpr import Interpreter
from compare.jax_side.lift_modules import lifted_linen
from compare.jax_side.lines import identity
from compare.jax_side.primitives import BITS, Kind, Program, bind, is_program, is_tracer, kind
from compare.jax_side.twins import Twins
from compare.jax_side.widths import NARROW, bits, cast, is_dtype, narrow, parameter_without_x64, without_x64
from compare.numerics.constants import LOW, doubtful, restored
from compare.numerics.tables import movement


class Tables(NamedTuple):
    """What a program holds in float32, and how it is to be moved."""

    draw: Any
    """Which of the movements of `numerics.tables` is made, 0 for none; it may be traced."""
    found: dict[bytes, str]
    """Each such number or array is added here by its `lines.identity`, as a person is to read it."""


def lift(step: Callable[..., Any], pinned: list[str], choices: Choices | None = None) -> Callable[..., Any]:
    """Make `step` compute in float64 throughout. Compile it: `jax.jit(lift(step, pinned))`, under `jax.enable_x64()`.

    A whole training step is lifted at once, `jax.value_and_grad` inside it: what a function is differentiated to (0
    for `jax.nn.relu` at 0) was decided when it was traced. Integers have the 32 bits that they have without
    `jax.enable_x64`, in which the port runs, so that they overflow as they do there. Booleans, keys and random bits
    stay as they are; but random floats that JAX draws under float64 are others than those in float32:
    `replay.replaying` is for them.

    Linen modules are traced in float64 from within; for nnx, whose modules are made before, see
    `lift_modules.lift_nnx`.

    Args:
        step: A function of pytrees of arrays, floating-point ones in float64, that gives such a pytree.
        pinned: What could not be lifted is added here when the step is traced, for a person to read.
        choices: Records the choices of the user's code, if given.

    """
    import jax

    @functools.wraps(step)
    def lifted(*args: Any) -> Any:
        closed, shape = traced(step, args, pinned, lift=True)
        values = jax.tree.leaves(args)
        outputs = Lifter(pinned, choices=choices).step(closed, [narrow(value) for value in values])
        # The state that a step returns has the types of the state that it took.
        kept = [
            cast(each, variable.aval.dtype) if str(variable.aval.dtype) in NARROW else each
            for each, variable in zip(outputs, Program.of(closed).outputs, strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(shape), kept)

    return lifted


class Lifter(Interpreter):
    """Runs a traced program in float64. What it cannot lift it adds to `pinned`, once."""

    def __init__(self, pinned: list[str], tables: Tables | None = None, choices: Choices | None = None) -> None:
        super().__init__()
        self.pinned = pinned
        self._tables, self._choices = tables, choices or Choices()
        self.twins = Twins()
        self._slopes: dict[int, tuple[Any, Any]] = {}
        """What each expm1 in the program gives, and of what, by the identity of the former."""

    def step(self, program: Any, args: Sequence[Any], written: Sequence[Any] = ()) -> list[Any]:
        """Run the program of a step; see `Twins.add_unchanged`."""
        self.twins.add_unchanged(program, args, written)
        return self.run(program, args)

    def constant(self, value: Any) -> Any:
        """Lift a number or an array that the program contains."""
        lifted = self._lifted(value)
        if not is_tracer(value):  # a function that is differentiated may hold a value that depends on weights
            self.twins.add(lifted, value)
        return lifted

    def _lifted(self, value: Any) -> Any:
        dtype = str(getattr(value, "dtype", None))
        if is_tracer(value) or dtype not in (*LOW, "float64"):
            return super().constant(value)
        array = np.asarray(value).astype(LOW[dtype].wide if dtype in LOW else dtype)
        # JAX writes `np.float32(0.1) * x` into a float64 program as the float64 number that np.float32(0.1) is. A
        # float64 number is one of float32 by accident once in 2**29 times.
        # The probability that a float64 number has 29 zero bits at its end.
        with np.errstate(over="ignore"):
            if dtype == "float64" and not np.array_equal(array.astype(np.float32), array, equal_nan=True):
                return value
        rounding = dtype if dtype in LOW else "float32"
        meant = None if np.iscomplexobj(array) else restored(array, rounding)
        if meant is None:
            what = f"of shape {array.shape}" if array.ndim else f"{array:.9g}"
            self._note(f"a constant {what} in the JAX side's program, rounded to {rounding}")
        # Constants of fewer bits are the port's own choice of precision, and certain ones are right: neither
        # is moved.
        if LOW[rounding].bits != LOW["float32"].bits or not (meant is None or doubtful(meant)):
            return array if meant is None else meant
        return self._moved(value, array, array if meant is None else meant)

    def _moved(self, value: Any, array: np.ndarray, meant: np.ndarray) -> Any:
        """Move numbers by their own rounding, if the run asks for it."""
        import jax.numpy as jnp

        if self._tables is None or not (movements := [movement(array, draw) for draw in (1, 2)])[0].any():
            return meant
        what = f"a constant of shape {array.shape}" if array.ndim else f"the constant {array:.9g}"
        self._tables.found.setdefault(identity(value), what)
        return jnp.stack([jnp.asarray(each) for each in (meant, *(meant + each for each in movements))])[
            self._tables.draw
        ]

    def carried(self, value: Any, variable: Any) -> Any:
        """Cast to the type that the variable has in float64.

        A float32 program has float32 in both branches of a conditional. Lifted, one of them may give a float64 array
        and the other a Python number or a NumPy array, which JAX takes for another type.
        """
        dtype = str(variable.aval.dtype)
        return cast(value, NARROW[dtype] if dtype in NARROW else _wide(variable.aval.dtype))

    def operation(self, eqn: Any, args: list[Any], given: Sequence[Any]) -> list[Any]:
        """Evaluate one operation in float64, or in its own precision if it does not support float64."""
        del given

        def as_written(twins: list[Any]) -> list[Any]:
            # The program was traced under `jax.enable_x64`, in which NumPy's float64 numbers stay what they are.
            params = {name: parameter_without_x64(value) for name, value in eqn.params.items()}
            return [without_x64(each) for each in bind(eqn, [without_x64(twin) for twin in twins], **params)]

        return self.twins.after(eqn, args, self._in_float64(eqn, args), as_written)

    def _in_float64(self, eqn: Any, args: list[Any]) -> list[Any]:
        name = eqn.primitive.name
        # It rounds to a format and stays in its dtype: in float64 the identity.
        if name == "reduce_precision":
            return args
        if name == "bitcast_convert_type":  # the bits are those of the precision that the code meant
            return _as_written(eqn, args)
        # Under x64, random floats are made of 64 random bits. These and their shifts and masks keep their width, or the
        # mantissa would be built of too few bits. All other integers were narrowed, so 64 bits identify them.
        if name in BITS or any(is_tracer(arg) and bits(arg) for arg in args):
            args = [cast(arg, v.aval.dtype) if bits(v.aval) else arg for arg, v in zip(args, eqn.invars, strict=True)]
            return bind(eqn, args, **{name: self._parameter(value, {}) for name, value in eqn.params.items()})
        args = [narrow(arg) for arg in args]
        if (slope := self._slope(name, args)) is not None:
            return [slope]
        try:
            outputs = bind(eqn, args, **{name: self._parameter(value) for name, value in eqn.params.items()})
        # Some operations exist in float32 alone, such as those of a kernel library. Between casts they still
        # run.
        except (TypeError, NotImplementedError):  # it knows no float64
            outputs = None
        if outputs is None or any(_low(output.dtype) for output in outputs):
            self._note(f"{name}, which computes in the precision that it was written for")
            outputs = _as_written(eqn, args)
        if name == "expm1":
            # The output itself is kept as well. `id` is unique only among objects that exist: if the output were freed,
            # a later array could have the same one.
            self._slopes[id(outputs[0])] = outputs[0], args[0]
        return outputs

    def _slope(self, name: str, args: Sequence[Any]) -> Any:
        """Compute expm1(x) + 1 as exp(x): JAX's slope of expm1, and so of ELU, keeps few digits where x is small."""
        import jax.numpy as jnp

        if name != "add":
            return None
        for one, other in (args, args[::-1]):
            if id(one) in self._slopes and not is_tracer(other) and np.ndim(other) == 0 and other == 1:
                return jnp.exp(self._slopes[id(one)][1])
        return None

    def equation(self, eqn: Any, args: list[Any], given: Sequence[Any]) -> list[Any]:
        """Evaluate one operation, and the programs that it runs; what goes into a loop or a branch is narrowed."""
        if kind(eqn) not in (None, Kind.CALL):
            args = [narrow(arg) for arg in args]
        with self._choices.at(eqn, args):
            return super().equation(eqn, args, given)

    def enclosed(self, program: Any, args: Sequence[Any], given: Sequence[Any] = ()) -> tuple[list[Any], list[Any]]:
        """Run a program within a transformation of JAX's, where no choice is noted."""
        with self._choices.closed():
            return super().enclosed(program, args, given)

    def _parameter(self, value: Any, narrow: Mapping[str, str] = NARROW) -> Any:
        """Lift an operation's parameter: a dtype, or a program that it applies to single elements of its arguments.

        dot_general has `preferred_element_type`, convert_element_type `new_dtype`, reduce_window and scatter a program.
        """
        import jax

        if isinstance(value, np.dtype | type):
            if not is_dtype(value):
                return value
            name = str(np.dtype(value))
            return np.dtype(narrow[name] if name in narrow else _wide(name)) if _low(name) or name in narrow else value
        # Such as TF32: an algorithm for a lower precision. None lets XLA take float64's own.
        if isinstance(value, jax.lax.DotAlgorithm | jax.lax.DotAlgorithmPreset):
            return None
        if is_program(value):
            avals: list[Any] = [variable.aval for variable in Program.of(value).arguments]
            shapes = [jax.ShapeDtypeStruct(aval.shape, self._parameter(np.dtype(aval.dtype))) for aval in avals]
            # The program of a reduction takes scalars. Traced again with wide scalars, its own constants are
            # lifted too.
            lifted = jax.make_jaxpr(lambda *args: self.enclosed(value, args)[0])(*shapes)
            return lifted if isinstance(value, type(lifted)) else lifted.jaxpr
        if isinstance(value, tuple):
            items = [self._parameter(item, narrow) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        return value

    def _note(self, text: str) -> None:
        note(self.pinned, text)


def note(pinned: list[str], text: str) -> None:
    """Add what could not be lifted, once."""
    if text not in pinned:
        pinned.append(text)


def _low(dtype: Any) -> bool:
    return str(dtype) in LOW


def _wide(dtype: Any) -> Any:
    return LOW[str(dtype)].wide if _low(dtype) else dtype


def _as_written(eqn: Any, args: list[Any]) -> list[Any]:
    """Evaluate one operation in its own precision, between casts."""
    narrow = [
        cast(arg, variable.aval.dtype) if _low(variable.aval.dtype) else arg
        for arg, variable in zip(args, eqn.invars, strict=True)
    ]
    return [cast(output, _wide(output.dtype)) for output in bind(eqn, narrow)]


@functools.cache
def _user_context() -> Any:
    import jax

    return jax.make_user_context(None)


class Apart:
    """Keeps what JAX traces within `traces` apart from all other traces.

    JAX remembers a function that is jitted within another by the function, and does not call it again.

    The first object registers a context with JAX, whose name is then part of what each program is remembered by: it
    must exist before the first program is compiled, or that one is compiled again.
    """

    def __init__(self) -> None:
        self._context = _user_context()

    def traces(self) -> contextlib.AbstractContextManager[None]:
        """Return the context in which to trace."""
        apart: contextlib.AbstractContextManager[None] = self._context(self)
        return apart


def traced(step: Callable[..., Any], args: Any, pinned: list[str], *, lift: bool) -> tuple[Any, Any]:
    """Trace a step; to lift it, in float64, or in float32 where the code mixes precisions in a way that JAX refuses.

    Returns:
        The program, and the shapes of what the step gives.

    """
    import jax

    def fresh(*args: Any) -> Any:
        """JAX caches traces by function and argument types, not by precision: a new function has a cache of its own."""
        return step(*args)

    if not lift:
        return jax.make_jaxpr(fresh, return_shape=True)(*args)
    try:
        with lifted_linen():
            return jax.make_jaxpr(fresh, return_shape=True)(*args)
    except (TypeError, InputError) as error:
        refused: Exception = error

    def narrowed(value: Any) -> Any:
        low = {"float64": np.float32, "int64": np.int32, "uint64": np.uint32, "complex128": np.complex64}
        return jax.ShapeDtypeStruct(value.shape, low.get(str(value.dtype), value.dtype))

    with jax.enable_x64(False), warnings.catch_warnings():
        # nnx modules request the float64 that `lift_nnx` set as their dtype, and JAX warns that it truncates it.
        warnings.filterwarnings("ignore", message="Explicitly requested dtype", category=UserWarning)
        found = jax.make_jaxpr(fresh, return_shape=True)(*jax.tree.map(narrowed, args))
    reason = told(refused.__cause__ or refused)
    note(
        pinned, f"the JAX side was traced in float32, which rounds its constants, because in float64 JAX says: {reason}"
    )
    return found
