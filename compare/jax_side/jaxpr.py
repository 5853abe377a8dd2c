"""A traced JAX program, run with float64 in the place of every lower precision."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from compare.numerics.constants import BITS, restored

WIDE = {"float32": "float64", "float16": "float64", "bfloat16": "float64", "complex64": "complex128"}
"""What each low precision becomes."""


def note(pinned: list[str], text: str) -> None:
    """Add what could not be lifted, once."""
    if text not in pinned:
        pinned.append(text)


def _low(dtype: Any) -> bool:
    return str(dtype) in WIDE


class Lifter:
    """Runs a traced program in float64.

    Nested programs (jit, checkpoint, custom derivatives) are run in place: they have been differentiated. Loops and
    branches are built anew, because the types of what they carry change.
    """

    def __init__(self, pinned: list[str]) -> None:
        self.pinned = pinned

    def run(self, program: Any, args: Sequence[Any]) -> list[Any]:
        """Evaluate a `ClosedJaxpr` or a `Jaxpr` without constants."""
        from jax.extend.core import Literal

        jaxpr, constants = getattr(program, "jaxpr", program), getattr(program, "consts", ())
        values: dict[Any, Any] = dict(zip(jaxpr.invars, args, strict=True))
        values |= {var: self.constant(value) for var, value in zip(jaxpr.constvars, constants, strict=True)}

        def read(atom: Any) -> Any:
            return self.constant(atom.val) if isinstance(atom, Literal) else values[atom]

        last = {atom: position for position, eqn in enumerate(jaxpr.eqns) for atom in eqn.invars if _is_variable(atom)}
        kept = {atom for atom in jaxpr.outvars if _is_variable(atom)}
        for position, eqn in enumerate(jaxpr.eqns):
            outputs = self.equation(eqn, [read(atom) for atom in eqn.invars])
            values.update(zip(eqn.outvars, outputs, strict=True))
            for atom in {atom for atom in eqn.invars if _is_variable(atom)} - kept:
                if last[atom] == position:
                    del values[atom]  # an array that nothing reads any more
        return [read(atom) for atom in jaxpr.outvars]

    def constant(self, value: Any) -> Any:
        """Lift a number or an array that the program contains."""
        import jax
        import jax.numpy as jnp

        dtype = getattr(value, "dtype", None)
        if dtype is None or isinstance(value, jax.core.Tracer) or str(dtype) not in (*WIDE, "float64"):
            return value
        if str(dtype) == "complex64":
            return jnp.asarray(value, jnp.complex128)
        array = np.asarray(value).astype(np.float64)
        rounding = str(dtype) if str(dtype) in BITS else "float32"
        # JAX writes `np.float32(0.1) * x` into a float64 program as the float64 number that np.float32(0.1) is. A
        # float64 number is one of float32 by accident once in 2**29 times.
        with np.errstate(over="ignore"):
            if str(dtype) == "float64" and not np.array_equal(array.astype(np.float32), array, equal_nan=True):
                return value
        meant = restored(array, rounding)
        if meant is None:
            what = f"of shape {array.shape}" if array.ndim else f"{array:.9g}"
            note(self.pinned, f"a constant {what} in the JAX side's program, rounded to {rounding}")
        return array if meant is None else meant

    def equation(self, eqn: Any, args: list[Any]) -> list[Any]:
        """Evaluate one operation."""
        import jax

        name, params = eqn.primitive.name, eqn.params
        if name == "scan":
            return self.scan(params, args)
        if name == "while":
            return self.while_loop(params, args)
        if name == "cond":
            branches = [functools.partial(self._positional, branch) for branch in params["branches"]]
            return list(jax.lax.switch(args[0], branches, *args[1:]))
        if name == "reduce_precision":
            return args
        if name == "bitcast_convert_type":  # the bits are those of the precision that the code meant
            return _as_written(eqn, args)
        if name in _IN_PLACE:
            return self.run(params["call_jaxpr" if "call_jaxpr" in params else "jaxpr"], args)
        try:
            outputs = _bind(eqn, args, {name: self.parameter(value) for name, value in params.items()})
        except (TypeError, NotImplementedError):  # it knows no float64
            outputs = None
        if outputs is None or any(_low(output.dtype) for output in outputs):
            note(self.pinned, f"{name}, which computes in the precision that it was written for")
            outputs = _as_written(eqn, args)
        return outputs

    def _positional(self, program: Any, *args: Any) -> list[Any]:
        return self.run(program, args)

    def parameter(self, value: Any) -> Any:
        """Lift an operation's parameter: a dtype, or a program that it applies to single elements of its arguments."""
        import jax
        from jax.extend.core import ClosedJaxpr, Jaxpr

        if isinstance(value, np.dtype | type):
            return np.dtype(WIDE[str(np.dtype(value))]) if _is_dtype(value) and _low(np.dtype(value)) else value
        if isinstance(value, jax.lax.DotAlgorithm | jax.lax.DotAlgorithmPreset):
            return None
        if isinstance(value, ClosedJaxpr | Jaxpr):
            avals: list[Any] = [var.aval for var in getattr(value, "jaxpr", value).invars]
            shapes = [jax.ShapeDtypeStruct(aval.shape, WIDE.get(str(aval.dtype), aval.dtype)) for aval in avals]
            lifted = jax.make_jaxpr(functools.partial(self._positional, value))(*shapes)
            return lifted if isinstance(value, ClosedJaxpr) else lifted.jaxpr
        if isinstance(value, tuple):
            items = [self.parameter(item) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        return value

    def scan(self, params: Any, args: list[Any]) -> list[Any]:
        """Build a scan anew."""
        import jax

        constants, carry = params["num_consts"], params["num_carry"]
        fixed, start, sequences = args[:constants], args[constants : constants + carry], args[constants + carry :]

        def body(state: Any, item: Any) -> Any:
            outputs = self.run(params["jaxpr"], [*fixed, *state, *item])
            return outputs[:carry], outputs[carry:]

        state, stacked = jax.lax.scan(
            body, start, sequences, params["length"], reverse=params["reverse"], unroll=params["unroll"]
        )
        return [*state, *stacked]

    def while_loop(self, params: Any, args: list[Any]) -> list[Any]:
        """Build a while loop anew."""
        import jax

        split = list(itertools.accumulate((params["cond_nconsts"], params["body_nconsts"])))
        tested, fixed, start = args[: split[0]], args[split[0] : split[1]], args[split[1] :]
        return list(
            jax.lax.while_loop(
                lambda state: self.run(params["cond_jaxpr"], [*tested, *state])[0],
                lambda state: self.run(params["body_jaxpr"], [*fixed, *state]),
                start,
            )
        )


_IN_PLACE = frozenset(
    {"jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}
    | {"checkpoint", "remat", "remat2"}
)
"""Operations that do nothing but run a program."""


def _is_variable(atom: Any) -> bool:
    from jax.extend.core import Literal

    return not isinstance(atom, Literal)


def _is_dtype(value: Any) -> bool:
    return isinstance(value, np.dtype) or issubclass(value, np.generic)


def _bind(eqn: Any, args: list[Any], params: dict[str, Any]) -> list[Any]:
    outputs = eqn.primitive.bind(*args, **params)
    return list(outputs) if eqn.primitive.multiple_results else [outputs]


def _as_written(eqn: Any, args: list[Any]) -> list[Any]:
    """Evaluate one operation in its own precision, between casts."""
    import jax

    narrow = [
        jax.lax.convert_element_type(arg, var.aval.dtype) if _low(var.aval.dtype) else arg
        for arg, var in zip(args, eqn.invars, strict=True)
    ]
    return [
        jax.lax.convert_element_type(output, WIDE[str(output.dtype)]) if _low(output.dtype) else output
        for output in _bind(eqn, narrow, eqn.params)
    ]
