"""All knowledge about JAX's traced programs: operations by name, their parameters, and how they are bound.

JAX promises none of it from one version to the next, so it is written down here and nowhere else. Every row holds for
JAX 0.8.1 to 0.12.0; where versions differ, the row says how. `tests/test_jaxpr.py` has a canary for each operation.
"""

import contextlib
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np

from compare.errors import InputError

TESTED = "0.8.1 to 0.12.0.1"
"""The versions of JAX for which this file has been tested."""


class Kind(StrEnum):
    """What an operation does with the programs among its parameters."""

    CALL = "runs one program, and nothing else"
    CHECKPOINT = "runs one program, and computes it again in the backward pass"
    SCAN = "runs one program for each element of its arguments"
    WHILE = "runs one program for as long as another says so"
    COND = "runs one of several programs"
    SHARD_MAP = "runs one program on each device, on its part of the arguments"
    ELEMENTS = "applies its programs to single elements of its arguments, or solves an equation with them"


KINDS: dict[str, Kind] = {
    "jit": Kind.CALL,
    "closed_call": Kind.CALL,
    "composite": Kind.CALL,
    "custom_jvp_call": Kind.CALL,
    "custom_vjp_call": Kind.CALL,
    "custom_vmap_call": Kind.CALL,
    "remat2": Kind.CHECKPOINT,
    "scan": Kind.SCAN,
    "while": Kind.WHILE,
    "cond": Kind.COND,
    "shard_map": Kind.SHARD_MAP,  # pmap is a jit with a shard_map in it
    "reduce": Kind.ELEMENTS,
    "reduce_window": Kind.ELEMENTS,
    "select_and_scatter": Kind.ELEMENTS,
    "scatter": Kind.ELEMENTS,
    "scatter-add": Kind.ELEMENTS,
    "scatter-sub": Kind.ELEMENTS,
    "scatter-mul": Kind.ELEMENTS,
    "scatter-min": Kind.ELEMENTS,
    "scatter-max": Kind.ELEMENTS,
    "custom_linear_solve": Kind.ELEMENTS,
}
"""The operations that have programs among their parameters, by name."""

JIT = "jit"
"""A call that bears the name of the function that it calls, as a parameter."""

GAMMA = "random_gamma"
"""Draws Gamma variables, or their logarithms."""

BITS = frozenset({"random_bits", "rng_bit_generator", "rng_uniform", GAMMA})
"""Operations that draw: random bits, but for one."""

_FOREIGN = frozenset({"callback", "ffi", "tf", "outside"})
"""Words in the names of operations whose results are computed outside the program."""

FUNCTIONS = frozenset({"exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "erf", "erfc"})
"""Functions whose last digits depend on the library."""

SUMS = frozenset({"reduce_sum"})
"""Operations that are rounded as the sum of the sizes of their terms is, whatever is left of it."""

ROUNDING = frozenset({"ceil", "floor", "round", "sign"})
"""Operations that make whole numbers of others, and keep their dtype."""

FIRST_COUNTS = frozenset({"sub", "div"})
"""Operations on single elements that are no longer the same with their arguments exchanged."""

ELEMENTWISE = frozenset(
    {"add", "mul", "max", "min", "clamp", "select_n", "convert_element_type", "copy", "broadcast_in_dim"}
)
"""Operations that leave the layout of an array as it is, but for axes that vmap puts in front."""

NAME = "name"
"""What `jax.ad_checkpoint.checkpoint_name` leaves behind: an identity, with the name given as a parameter."""


def kind(eqn: Any) -> Kind | None:
    """Give what an operation does with the programs among its parameters; None if it has none.

    Raises:
        InputError: If it has some, and `KINDS` does not list it.

    """
    name = eqn.primitive.name
    if (known := KINDS.get(name)) is not None:
        return known
    if any(True for _ in programs(eqn)):
        raise InputError(
            f"the JAX side's program has an operation {name!r}, which runs programs of its own, and which this version "
            f"of compare does not know. {_versions()}"
        )
    return None


def programs(eqn: Any) -> Iterator[Any]:
    """List the programs among an operation's parameters, each a `Jaxpr` or a `ClosedJaxpr`."""
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if is_program(item):
                yield item


def is_program(value: Any) -> bool:
    """Tell whether a value is a traced program; `ClosedJaxpr` and `Jaxpr` are one class from JAX 0.12 on."""
    from jax.extend.core import ClosedJaxpr, Jaxpr

    return isinstance(value, ClosedJaxpr | Jaxpr)


def is_key(dtype: Any) -> bool:
    """Tell whether an array of a type holds random keys, of which NumPy makes no numbers."""
    import jax

    return bool(jax.numpy.issubdtype(dtype, jax.dtypes.extended))


def is_foreign(eqn: Any) -> bool:
    """Tell whether an operation leaves the program, for Python or for compiled code of another library.

    They are known by words in their names: `pure_callback`, `io_callback`, `ffi_call`, `call_tf`. What only shows
    values, `debug_callback` and `debug_print`, gives nothing back and may stay.
    """
    words = set(eqn.primitive.name.split("_"))
    return bool(words & _FOREIGN) and "debug" not in words


class Program(NamedTuple):
    """A traced program, taken apart."""

    constants: Sequence[Any]
    constant_variables: Sequence[Any]
    arguments: Sequence[Any]
    equations: Sequence[Any]
    outputs: Sequence[Any]
    """Variables or literals."""

    @classmethod
    def of(cls, program: Any) -> "Program":
        """Take a `ClosedJaxpr`, or a `Jaxpr` without constants, apart."""
        inner = getattr(program, "jaxpr", program)
        return cls(getattr(program, "consts", ()), inner.constvars, inner.invars, inner.eqns, inner.outvars)

    def used(self) -> list[Any]:
        """List the operations whose results are used, in order: JAX leaves what nobody reads in a trace."""
        read = {atom for atom in self.outputs if not is_literal(atom)}
        kept = []
        for eqn in reversed(self.equations):
            if eqn.effects or any(variable in read for variable in eqn.outvars):
                kept.append(eqn)
                read |= {atom for atom in eqn.invars if not is_literal(atom)}
        return kept[::-1]


def is_literal(atom: Any) -> bool:
    """Tell whether what an operation reads is a number, `.val`, and not a variable."""
    from jax.extend.core import Literal

    return isinstance(atom, Literal)


def is_tracer(value: Any) -> bool:
    """Tell whether a value stands for an array in a program that is being traced."""
    import jax

    return isinstance(value, jax.core.Tracer)


def typed(value: Any) -> Any:
    """Give a constant of a program the type that it has there.

    Where a NumPy array of float64 was traced under `jax.enable_x64` before, JAX may keep it in float64 in a program
    without, whose operations take it for float32.
    """
    from jax import dtypes

    dtype = getattr(value, "dtype", None)
    if not isinstance(dtype, np.dtype) or is_tracer(value) or dtypes.canonicalize_dtype(dtype) == dtype:
        return value
    return np.asarray(value).astype(dtypes.canonicalize_dtype(dtype))


def trace_state() -> Any:
    """Give what is the same for two places in a program where neither is in a transformation that the other is not."""
    import jax
    from jax.extend import core

    if hasattr(core, "get_opaque_trace_state"):  # from JAX 0.10 on
        return core.get_opaque_trace_state(convention="flax")
    before: Any = jax.core
    return before.get_opaque_trace_state(convention="flax")


def called(eqn: Any) -> Any:
    """Give the program that a call or a checkpoint runs."""
    return _parameter(eqn, "call_jaxpr", "jaxpr", "call")


def in_logarithms(program: Any) -> bool:
    """Tell whether a program that draws Gamma variables gives their logarithms, as `jax.random.loggamma` does."""
    return any(eqn.primitive.name == GAMMA and eqn.params.get("log_space") for eqn in Program.of(program).equations)


class Scan(NamedTuple):
    """What a scan does."""

    program: Any
    constants: int
    carry: int
    length: int
    reverse: bool
    unroll: int

    @classmethod
    def of(cls, eqn: Any) -> "Scan":
        """Read a scan.

        How many of its arguments are constants, carry and sequences follows from their shapes: inside, a sequence has
        one axis less. The parameters that say it are `num_consts` and `num_carry` up to JAX 0.10, and then `ft_in`.
        """
        program = _parameter(eqn, "jaxpr")
        inner = Program.of(program)
        sequences = sum(
            len(outside.aval.shape) > len(inside.aval.shape)
            for outside, inside in zip(eqn.invars, inner.arguments, strict=True)
        )
        carry = sum(
            len(outside.aval.shape) == len(inside.aval.shape)
            for outside, inside in zip(eqn.outvars, inner.outputs, strict=True)
        )
        return cls(
            program,
            len(eqn.invars) - carry - sequences,
            carry,
            _parameter(eqn, "length"),
            _parameter(eqn, "reverse"),
            _parameter(eqn, "unroll"),
        )


class While(NamedTuple):
    """What a while loop does."""

    condition: Any
    condition_constants: int
    body: Any
    body_constants: int

    @classmethod
    def of(cls, eqn: Any) -> "While":
        """Read a while loop."""
        return cls(
            _parameter(eqn, "cond_jaxpr"),
            _parameter(eqn, "cond_nconsts"),
            _parameter(eqn, "body_jaxpr"),
            _parameter(eqn, "body_nconsts"),
        )


class Cond(NamedTuple):
    """What a conditional or a switch does."""

    branches: tuple[Any, ...]
    platforms: tuple[tuple[str, ...] | None, ...] | None
    """For `jax.lax.platform_dependent`: the platforms of each branch, None for all others."""

    @classmethod
    def of(cls, eqn: Any) -> "Cond":
        """Read a conditional."""
        return cls(_parameter(eqn, "branches"), eqn.params.get("branches_platforms"))


class ShardMap(NamedTuple):
    """What a shard_map does."""

    program: Any
    options: dict[str, Any]
    """The keyword arguments of `jax.shard_map` that make another one like it."""

    @classmethod
    def of(cls, eqn: Any) -> "ShardMap":
        """Read a shard_map."""
        return cls(
            _parameter(eqn, "jaxpr"),
            {
                "mesh": _parameter(eqn, "mesh"),
                "in_specs": tuple(_parameter(eqn, "in_specs")),
                "out_specs": tuple(_parameter(eqn, "out_specs")),
                "check_vma": _parameter(eqn, "check_vma"),
                "axis_names": set(_parameter(eqn, "newly_manual_axes", "manual_axes")),  # the latter up to JAX 0.9
            },
        )


def checkpoint_options(eqn: Any) -> dict[str, Any]:
    """Give the keyword arguments of `jax.checkpoint` that make another checkpoint like this one."""
    return {name: _parameter(eqn, name) for name in ("prevent_cse", "policy")}


def bind(eqn: Any, args: Sequence[Any], **params: Any) -> list[Any]:
    """Evaluate one operation as it is, but for `params` that are other."""
    own = eqn.primitive.get_bind_params({**eqn.params, **params})
    functions, own = own if isinstance(own, tuple) else ((), own)  # a pair up to JAX 0.8
    # get_bind_params turns the parameters of a traced operation back into those of `bind`: for
    # custom_jvp_call, for instance, a jaxpr into a function. jax.core.eval_jaxpr does the same.
    outputs = eqn.primitive.bind(*functions, *args, **own)
    return list(outputs) if eqn.primitive.multiple_results else [outputs]


def made_where(eqn: Any) -> contextlib.AbstractContextManager[None]:
    """Give what is traced in this context the user's line of the operation that it stands for."""
    from jax.extend.source_info_util import current_name_stack, user_context

    source = eqn.source_info
    names = current_name_stack() + source.name_stack
    return user_context(source.traceback, name_stack=names) if source.traceback else contextlib.nullcontext()


def is_of_derivative(eqn: Any) -> bool:
    """Tell whether an operation is part of a backward pass: JAX names it after the transformation that made it."""
    return "transpose(" in str(eqn.source_info.name_stack)


def _parameter(eqn: Any, *names: str) -> Any:
    """Read an operation's parameter, by the first of its names that it has."""
    for name in names:
        if name in eqn.params:
            return eqn.params[name]
    raise InputError(
        f"the JAX side's program has an operation {eqn.primitive.name!r} without the parameter {names[0]!r}, by which "
        f"this version of compare reads it. {_versions()}"
    )


def _versions() -> str:
    import jax

    return f"This is JAX {jax.__version__}; tested are {TESTED}: install one of these, or a newer compare"
