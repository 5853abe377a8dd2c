"""What the JAX side may do otherwise in the functions that torch calls: each is tried on the torch side.

The tables of what may be otherwise are in `compare.diagnosis.conventions`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from compare.diagnosis.conventions.activations import ACTIVATIONS, activations
from compare.diagnosis.conventions.base import JAX, Alternative, Fix, Setting, Variants
from compare.diagnosis.conventions.gradients import GRADIENTS
from compare.diagnosis.conventions.layers import LAYERS
from compare.diagnosis.conventions.losses import LOSS_FUNCTIONS
from compare.diagnosis.conventions.recurrent import RECURRENT
from compare.diagnosis.conventions.reductions import FUNCTIONS as OTHER_FUNCTIONS
from compare.diagnosis.conventions.resampling import RESAMPLING
from compare.diagnosis.conventions.settings import SETTINGS
from compare.diagnosis.conventions.variants import VARIANTS
from compare.diagnosis.place import Place
from compare.diagnosis.rewriting import Call, Rewrite
from compare.errors import NotApplicable
from compare.verdict.fix import Code

ALTERNATIVES: tuple[Alternative, ...] = (
    *LAYERS,
    *RECURRENT,
    *OTHER_FUNCTIONS,
    *RESAMPLING,
    *LOSS_FUNCTIONS,
    *GRADIENTS,
)

FUNCTIONS = frozenset(
    (*ACTIVATIONS, *(name for table in (SETTINGS, VARIANTS, ALTERNATIVES) for row in table for name in row.functions))
)
"""All that these tables know."""


class Counterfactual(NamedTuple):
    """One thing that the JAX side may do otherwise, ready to be tried."""

    name: str
    number: int
    """Of the call."""
    call: Call
    rewrite: Rewrite
    jax_does: str
    fix: Fix
    source: str
    value: float | None = None
    """Of a setting that is to be fitted; `rewrite` is then for `of` a value."""
    of: Callable[[float], Rewrite] | None = None
    short: str = ""
    """What the JAX side does in a few words, if there are fewer than in `jax_does`: "mode=reflect"."""
    may_be_torchs: bool = False
    """Whether torch may compute the same already."""


def counterfactuals(calls: Sequence[Call], *, gradient: bool) -> Iterator[Counterfactual]:
    """List what may be otherwise in the calls of a window: the likeliest first.

    Args:
        calls: In order of execution.
        gradient: Whether what shows in gradients alone is asked for.

    """
    for number, call in enumerate(calls):
        if gradient:
            yield from _alternatives(number, call, gradient=True)
        else:
            # What fits without a number of its own says more than a number that was fitted.
            yield from _alternatives(number, call, gradient=False)
            yield from _variants(number, call)
            yield from _settings(number, call)
            yield from _bounds(number, call)
            yield from _other_activations(number, call)


def _within(setting: Setting, value: float) -> float:
    least, most = setting.within
    if not least <= value <= most:
        raise NotApplicable(f"nobody gives {setting.argument} {value}")
    return value


def _settings(number: int, call: Call) -> Iterator[Counterfactual]:
    for setting in SETTINGS:
        if call.name not in setting.functions or setting.argument not in call:
            continue
        value = call[setting.argument]
        value = setting.default(call) if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue

        def of(other: float, setting: Setting = setting) -> Rewrite:
            return lambda call: call.run(**{setting.argument: _within(setting, other)})

        source, own = setting.source, float(value)
        yield Counterfactual(setting.name, number, call, of(own), setting.argument, setting.fix, source, own, of)


BOUNDS = "bounds"
"""The name of both bounds of a clamp, which people write as one number: 1 - 0.2 and 1 + 0.2."""


def _bounds(number: int, call: Call) -> Iterator[Counterfactual]:
    if call.name not in ("clamp", "clip") or not {"min", "max"} <= call.arguments.keys():
        return
    low, high = call["min"], call["max"]
    if not all(isinstance(each, int | float) and not isinstance(each, bool) for each in (low, high)) or low >= high:
        return
    middle, half = (low + high) / 2, (high - low) / 2

    def of(other: float) -> Rewrite:
        return lambda call: call.run(min=middle - other, max=middle + other)

    def fix(call: Call, place: Place) -> Code:
        del place
        return Code("jnp.clip", ("x",), {"min": call["min"], "max": call["max"]})

    yield Counterfactual(BOUNDS, number, call, of(half), f"{middle:g} ±", fix, f"{JAX}jax.numpy.clip.html", half, of)


def left_out(code: Code) -> Code | None:
    """Apply a function of one tensor to what the JAX side has at the place, which is what the function should take."""
    if code.before != ("x",) or code.arguments != ("x",) or code.around != "{}":
        return None
    return dataclasses.replace(code, arguments=("y",), before=(), whole=True)


def _variants(number: int, call: Call) -> Iterator[Counterfactual]:
    for variants in VARIANTS:
        if call.name not in variants.functions or variants.argument not in call:
            continue
        now = call[variants.argument]
        for value in variants.values(call):
            if value is now or _same(value, now):
                continue

            def rewrite(call: Call, value: Any = value, argument: str = variants.argument) -> Any:
                return call.run(**{argument: value})

            plain = value is None or isinstance(value, bool | int | float | str | list)
            shown = value if plain else "the inverse"
            short = f"{variants.argument}={shown}"
            does = f"computes what torch would with {short}"

            def fix(call: Call, place: Place, value: Any = value, variants: Variants = variants) -> Code | str | None:
                code, before = variants.fix(call, place), variants.theirs(call, value)
                return (
                    dataclasses.replace(code, before=before, whole=True) if before and isinstance(code, Code) else code
                )

            yield Counterfactual(variants.name, number, call, rewrite, does, fix, variants.source, short=short)


def _same(value: Any, now: Any) -> bool:
    """Return whether two arguments mean the same: 0 and (0, 0), but not 0 and False."""
    if isinstance(now, tuple | list):
        return bool(now) and all(_same(value, part) for part in now)
    return isinstance(value, type(now)) and isinstance(now, int | str) and value == now


def _alternatives(number: int, call: Call, *, gradient: bool) -> Iterator[Counterfactual]:
    for each in ALTERNATIVES:
        if each.gradient == gradient and call.name in each.functions and each.applies(call):
            yield Counterfactual(
                each.name,
                number,
                call,
                each.compute,
                each.jax_does,
                each.fix,
                each.source,
                may_be_torchs=each.may_be_torchs,
            )


def _other_activations(number: int, call: Call) -> Iterator[Counterfactual]:
    if call.name not in ACTIVATIONS:
        return
    known = activations()
    own = ACTIVATIONS[call.name]
    numbers = [n for n, v in call.arguments.items() if n != "inplace" and isinstance(v, int | float)]
    if any(call[name] != call.signature.parameters[name].default for name in numbers):
        return  # not the function at its defaults: a setting says more
    if call.name == "gelu" and call["approximate"] == "tanh":
        own = "the tanh approximation of GELU"
    for name, (function, theirs) in known.items():
        if name != own:

            def rewrite(call: Call, function: Callable[[Any], Any] = function) -> Any:
                return function(call.input)

            # What is no call of one function of x, such as clip(0.2 x + 0.5, 0, 1), has many parts in the user's code.
            one = theirs.around == "{}" and theirs.arguments == ("x",)
            code = dataclasses.replace(known[own][1], instead=theirs.call if one else "", whole=one)
            if name == "the identity":  # see `left_out`
                code = dataclasses.replace(code, before=("x",))

            def fix(call: Call, place: Place, code: Code = code) -> Code:
                del call, place
                return code

            does = f"applies {name}, torch {own}"
            yield Counterfactual(
                "activation", number, call, rewrite, does, fix, f"{JAX}{code.call or 'jax.nn.gelu'}.html"
            )


def told_of(group: Sequence[Counterfactual]) -> Counterfactual:
    """Choose of the same change of several calls the one that is told.

    A gradient goes through some calls only, and not through the bounds that an observer takes under no_grad.
    """
    return next((each for each in group if _is_differentiated(each.call)), group[0])


def _is_differentiated(call: Call) -> bool:
    given = list(call.arguments.values())
    return any(isinstance(each, list | tuple) or getattr(each, "requires_grad", False) for each in given)
