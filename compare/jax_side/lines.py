"""Finds the lines of the user's code that parts of a traced JAX program come from."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from compare.jax_side.primitives import Program, called, is_literal, is_tracer, programs
from compare.step.places import JAX_PACKAGES, Source, source, users_frame, users_line, without_own


def line(eqn: Any) -> str:
    """Name the user's line that an operation comes from, "model.py:12"; nothing where JAX does not know it."""
    return users_line(_frames(eqn), *JAX_PACKAGES)


def is_of_jax(eqn: Any) -> bool:
    """Return whether nothing but JAX's own code made an operation, as in the derivative rules of its functions."""
    import jax

    frames, inside = _frames(eqn), os.path.dirname(jax.__file__) + os.sep
    return bool(frames) and all(file.startswith(inside) for file, _ in frames)


def is_of_function(eqn: Any) -> bool:
    """Return whether an operation is a call of a jitted function of the user's.

    Functions of `jax.numpy` are jitted too. JAX traces each of them once, so that the operations in it have the line of
    the first call, wherever they are.
    """
    inner = Program.of(called(eqn)).equations
    name = eqn.params.get("name")
    traceback = inner[0].source_info.traceback if inner else None
    if traceback is None:
        return False
    frames = list(traceback.frames)
    number = users_frame([frame.file_name for frame in frames], JAX_PACKAGES)
    return number is not None and any(frame.function_name.rpartition(".")[2] == name for frame in frames[number:])


def _frames(eqn: Any) -> list[tuple[str, int]]:
    """Return the files and the lines in which an operation was made, the innermost first; none without a traceback."""
    traceback = eqn.source_info.traceback
    return [(frame.file_name, frame.line_num) for frame in traceback.frames] if traceback else []


def expression(eqn: Any, *, own: bool = False) -> Source | None:
    """Return the user's expression that an operation comes from; None where JAX does not know it.

    Args:
        eqn: The operation.
        own: Whether it is an operation of this package, which a call of the user's makes.

    """
    traceback = eqn.source_info.traceback
    if traceback is None:
        return None
    codes, last = traceback.raw_frames()
    frames = zip(codes, last, strict=True)
    return source(without_own(frames) if own else frames, *JAX_PACKAGES)


def constant_lines(program: Any) -> dict[bytes, str]:
    """Name the line that first uses each number and array that a program contains, by its `identity`."""
    lines: dict[bytes, str] = {}
    _collect(program, {}, lines)
    return lines


def identity(value: Any) -> bytes:
    """Return what is the same for a constant wherever a program has it: traced anew, it is another object."""
    array = np.asarray(value)
    return repr(array.shape).encode() + array.astype(np.complex128).tobytes()


def _collect(program: Any, known: Mapping[Any, bytes], lines: dict[bytes, str]) -> None:
    constants, variables, _, equations, _ = Program.of(program)
    values = {variable: identity(value) for variable, value in zip(variables, constants, strict=True) if _held(value)}
    own = {**known, **values}
    for eqn in equations:
        held = [_value(atom, own) for atom in eqn.invars]
        for nested in programs(eqn):
            # Constants are hoisted to the outermost program, and passed to the programs in it as arguments. The
            # line of interest is in the innermost program that uses them.
            inside = zip(Program.of(nested).arguments, held, strict=False)
            _collect(nested, {variable: value for variable, value in inside if value is not None}, lines)
        for value in held:
            if value is not None and not lines.get(value):
                lines[value] = line(eqn)


def _value(atom: Any, known: Mapping[Any, bytes]) -> bytes | None:
    if is_literal(atom):
        return identity(atom.val) if _held(atom.val) else None
    return known.get(atom)


def _held(value: Any) -> bool:
    """Return whether it is a number or an array of floating-point or complex numbers."""
    return not is_tracer(value) and getattr(getattr(value, "dtype", None), "kind", "") in ("f", "c")
