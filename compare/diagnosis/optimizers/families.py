"""Tries other optimizers: optax's own functions, run on the gradients of torch's optimizer.

The settings of such an optimizer are not fitted. They are optax's defaults, or torch's where both have one of that
name, so that what fits has no free number but a constant learning rate.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compare.diagnosis.optimizers.calls import Call
from compare.diagnosis.optimizers.evidence import Evidence, OptimizerStep
from compare.diagnosis.optimizers.names import OPTAX, named
from compare.diagnosis.optimizers.told import Told
from compare.numerics.distance import norm
from compare.step.observation import Observation, to_numpy

DOCS = "https://optax.readthedocs.io/en/latest/api/optimizers.html"

LARGEST = 300_000
"""The largest number of elements for which other optimizers are tried: twenty of them repeat all steps."""

FEWEST = 2
"""Steps that are needed. At the first step Adam and the sign of the gradient are nearly the same."""

BATCHES = (2, 3, 4)
"""Batches for one update that are tried with torch's own optimizer."""


@dataclass(frozen=True)
class Candidate:
    """What the JAX side may have in the place of torch's optimizer: a call with a learning rate of 1."""

    function: str
    keywords: Mapping[str, Any]
    every: int = 1
    """Batches for one update."""
    zeros_between: bool = False
    """Whether the optimizer gets zeros in between, as after `optax.apply_every`."""

    def call(self, rate: float) -> Call:
        """Write it, with its learning rate."""
        inner = Call(self.function, (rate,), _other_than_defaults(self.function, self.keywords))
        if self.every == 1:
            return inner
        if self.zeros_between:
            parts = Call("optax.scale", (1 / self.every,)), Call("optax.apply_every", (self.every,)), inner
            return Call("optax.chain", parts)
        return Call("optax.MultiSteps", (inner, self.every))


@dataclass(frozen=True)
class Family:
    """A candidate that explains every step."""

    candidate: Candidate
    rate: float
    """Its learning rate at the first step."""
    free: int
    """1 if the rate was fitted, 0 if it is torch's at each step."""
    left: float
    """The largest relative difference that is left."""


def families(evidence: Evidence) -> list[Family]:
    """Return the other optimizers that explain all updates, those without a fitted number before others."""
    steps = evidence.steps
    # Each candidate repeats every step. From a size on that would cost more than the check, and steps with gaps have
    # no state to start from.
    size = sum(result.jax.size for result in steps[0].results if not result.is_state)
    if size > LARGEST or [step.number for step in steps] != list(range(len(steps))):
        return []
    updates = [[result for result in step.results if not result.is_state] for step in steps]
    # From its start, an optimizer may take the first step of another one: what it remembers shows at the second. A step
    # without any gradient shows nothing.
    if sum(any(result.torch.any() or result.jax.any() for result in each) for each in updates) < FEWEST:
        return []
    differing = sum(result.jax.size for each in updates for result in each if result.differs)
    found: list[Family] = []
    known: set[bytes] = set()
    for candidate in candidates(evidence):
        directions: list[list[np.ndarray]] = []
        options: list[tuple[list[float], int]] = []
        for arrays in _directions(candidate, evidence):
            directions.append(arrays)
            made = steps[: len(directions)]
            # A rate of torch's at each step costs no free number. Otherwise one constant rate is fitted, to
            # the first step that moves, and must then hold at all others.
            fitted = _constant(made, directions)
            options = [([step.rate for step in made], 0), *([([fitted] * len(made), 1)] if fitted else [])]
            # Most candidates fail at the first step that moves, and take no others.
            if fitted and all(_left(made, directions, rates) is None for rates, _ in options):
                break
        if len(directions) < len(steps) or (key := b"".join(a.tobytes() for step in directions for a in step)) in known:
            continue
        known.add(key)
        for rates, free in options:
            left = _left(steps, directions, rates)
            if left is not None:
                found.append(Family(candidate, rates[0], free, left))
                break
    # An optimizer that explains all with torch's own rates leaves no room for one that needs another rate.
    least = min((each.free for each in found), default=0)
    # As for other hypotheses: a fitted number must explain more than it was fitted to, by as many again and one.
    return [each for each in found if each.free == least and differing >= 2 * each.free + 1]


def candidates(evidence: Evidence) -> Iterator[Candidate]:
    """List what the JAX side may have in the place of torch's optimizer."""
    group = evidence.steps[0].groups[0]
    own = _own(evidence.kind, group)
    b1, b2 = group.get("betas", (0.9, 0.999))[:2]
    eps, momentum = group.get("eps", 1e-8), float(group.get("momentum") or 0.9)
    decay = float(group.get("weight_decay") or 0.0)
    adam = {"b1": float(b1), "b2": float(b2), "eps": eps if isinstance(eps, float) else 1e-8}
    yield from (
        each for each in _of_other_names(adam, decay, momentum) if each.function not in _SAME.get(evidence.kind, ())
    )
    if own is not None:
        for every in BATCHES:
            yield Candidate(own.function, own.keywords, every)
            yield Candidate(own.function, own.keywords, every, zeros_between=True)


_ADAMS = ("optax.adam", "optax.adamw", "optax.amsgrad")
_SAME: dict[str, tuple[str, ...]] = {kind: (function,) for kind, function in OPTAX.items()}
_SAME |= {"Adam": _ADAMS, "AdamW": _ADAMS}
"""Functions of optax that differ from an optimizer of torch by settings alone, which are found otherwise."""


def _of_other_names(adam: Mapping[str, float], decay: float, momentum: float) -> Iterator[Candidate]:
    yield Candidate("optax.sgd", {})
    # People carry the numbers over: the momentum of SGD becomes b1, and the other way round. Optax's own default is
    # tried beside it.
    for value in dict.fromkeys((momentum, adam["b1"], 0.9)):
        yield Candidate("optax.sgd", {"momentum": value})
        yield Candidate("optax.sgd", {"momentum": value, "nesterov": True})
    for settings in ({}, adam):
        yield from (Candidate(f"optax.{name}", settings) for name in _AS_ADAM)
        for value in dict.fromkeys((decay, 1e-4, 1e-2)):
            yield Candidate("optax.adamw", {**settings, "weight_decay": value})
    yield from (Candidate(f"optax.{name}", {"weight_decay": value}) for name in _DECAYING for value in (decay, 1e-3))
    yield from (Candidate(f"optax.{name}", {}) for name in _OTHERS)
    yield Candidate("optax.rmsprop", {"decay": 0.99, "eps_in_sqrt": False})


_AS_ADAM = ("adam", "adabelief", "adamax", "nadam", "radam", "amsgrad")
_DECAYING = ("lion",)
_OTHERS = ("rmsprop", "adagrad", "adadelta", "yogi", "sign_sgd", "adan", "rprop")
"""Functions of optax that treat each element by itself."""


def _own(kind: str, group: Mapping[str, Any]) -> Candidate | None:
    """Write torch's optimizer in optax, where its updates are the same."""
    if kind == "SGD" and not group.get("dampening") and not group.get("weight_decay") and not group.get("maximize"):
        momentum = {"momentum": float(group["momentum"]), "nesterov": bool(group["nesterov"])}
        return Candidate("optax.sgd", momentum if group["momentum"] else {})
    if kind in ("Adam", "AdamW") and not group.get("amsgrad") and not group.get("maximize"):
        b1, b2 = group["betas"]
        settings = {"b1": float(b1), "b2": float(b2), "eps": float(group["eps"])}
        if kind == "AdamW":
            return Candidate("optax.adamw", {**settings, "weight_decay": float(group["weight_decay"])})
        return Candidate("optax.adam", settings) if not group.get("weight_decay") else None
    return None


class _Flat:
    """All parameters in one vector: what treats each element by itself takes one operation for all of them."""

    def __init__(self, parameters: Mapping[str, np.ndarray]) -> None:
        self.shapes = {name: array.shape for name, array in parameters.items()}
        ends = np.cumsum([array.size for array in parameters.values()])
        self.parts = {n: slice(end - parameters[n].size, end) for n, end in zip(parameters, ends.tolist(), strict=True)}
        self.size = int(ends[-1])

    def joined(self, arrays: Mapping[str, np.ndarray], others: np.ndarray | None = None) -> np.ndarray:
        """Return the vector; of parameters without an array it has zeros, or what `others` has."""
        vector = np.zeros(self.size) if others is None else np.array(others, np.float64)
        for name, array in arrays.items():
            vector[self.parts[name]] = array.ravel()
        return vector

    def split(self, value: Any) -> dict[str, np.ndarray]:
        """Return the part of each parameter; a number, such as a count, is every one's."""
        array = np.asarray(value)
        if array.shape != (self.size,):
            return dict.fromkeys(self.shapes, array)
        return {name: array[part].reshape(self.shapes[name]) for name, part in self.parts.items()}


def _directions(candidate: Candidate, evidence: Evidence) -> Iterator[list[np.ndarray]]:
    """Return the updates and the state of a candidate with learning rate 1, step by step."""
    import jax
    import optax

    flat, fields = _Flat(_arrays(evidence.steps[0].parameters)), _fields(evidence)
    try:
        made: Any = candidate.call(1.0).made()
        made = made.gradient_transformation() if isinstance(made, optax.MultiSteps) else made
        with jax.enable_x64(True):
            state = made.init(flat.joined(_arrays(evidence.steps[0].parameters)))
        for step in evidence.steps:
            parameters, gradients = flat.joined(_arrays(step.parameters)), flat.joined(_arrays(step.given))
            with jax.enable_x64(True):
                state = _loaded(state, _shared(evidence, step, fields), flat)
                updates, state = made.update(gradients, state, parameters)
                seen = Observation(updates=flat.split(updates), optimizer=_slots(state, fields, flat))
            yield [np.array(result.pairing.torch_array(seen), np.float64) for result in step.results]
    except (TypeError, ValueError, AttributeError, KeyError):
        return  # of a version of optax that has no such function or argument


def _arrays(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: to_numpy(tensor).astype(np.float64) for name, tensor in tensors.items() if tensor is not None}


def _fields(evidence: Evidence) -> dict[str, str]:
    """Return what the JAX side's optimizer calls those slots of torch that are compared: {"exp_avg": "mu"}."""
    found: dict[str, str] = {}
    for result in (result for result in evidence.steps[0].results if result.is_state):
        slot = result.pairing.torch.partition(" + ")[0].partition("[")[0].rpartition(".")[2]
        for part in result.pairing.jax.split("/"):
            if part in _KEPT:
                found[slot] = part
    return found


_KEPT = ("mu", "nu", "trace", "sum_of_squares", "count")
"""What optax's optimizers call what they remember."""


def _shared(evidence: Evidence, step: OptimizerStep, fields: Mapping[str, str]) -> dict[str, Any]:
    """Return what the JAX side's optimizer starts the step from, by its own names and by parameter.

    Where both sides keep a slot, the JAX side's starts each step from torch's value.
    """
    shared: dict[str, Any] = {}
    for number, slots in step.state["state"].items():
        for slot, value in slots.items():
            if fields.get(slot) == "count":
                shared["count"] = np.int32(float(value))
            elif slot in fields and value is not None:
                name = evidence.parameter_names[number]
                shared.setdefault(fields[slot], {})[name] = to_numpy(value).astype(np.float64)
    return shared


def _slots(state: Any, fields: Mapping[str, str], flat: _Flat) -> dict[str, np.ndarray]:
    """Return what an optimizer remembers, named as torch's slots are: "exp_avg/fc.weight"."""
    found: dict[str, np.ndarray] = {}
    for slot, field in fields.items():
        if (value := _remembered(state, field)) is not None:
            found |= {f"{slot}/{name}": np.asarray(part, np.float64) for name, part in flat.split(value).items()}
    return found


def _remembered(state: Any, field: str) -> Any:
    """Find a field anywhere in an optimizer's state; None if it has none of that name."""
    if not isinstance(state, tuple):
        return None
    if field in getattr(state, "_fields", ()):
        return getattr(state, field)
    return next((value for value in (_remembered(part, field) for part in state) if value is not None), None)


def _loaded(state: Any, shared: Mapping[str, Any], flat: _Flat) -> Any:
    """Put slots into an optimizer's state, wherever it has fields of these names."""
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        return type(state)(**{field: _field(field, getattr(state, field), shared, flat) for field in state._fields})
    return tuple(_loaded(each, shared, flat) for each in state) if isinstance(state, tuple) else state


def _field(name: str, value: Any, shared: Mapping[str, Any], flat: _Flat) -> Any:
    if name not in shared:
        return _loaded(value, shared, flat)
    given = shared[name]
    return flat.joined(given, value if np.shape(value) == (flat.size,) else None) if isinstance(given, dict) else given


def _other_than_defaults(function: str, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the arguments that a function of optax has anyway."""
    import optax

    known = getattr(optax, function.rpartition(".")[2], None)
    defaults = {} if known is None else inspect.signature(known).parameters
    return {name: value for name, value in keywords.items() if name not in defaults or defaults[name].default != value}


def _constant(steps: Sequence[OptimizerStep], directions: list[list[np.ndarray]]) -> float | None:
    """Fit one learning rate by least squares, and round it as people write numbers if that fits as well."""
    for step, arrays in zip(steps, directions, strict=True):
        moved = [(a, r.jax) for a, r in zip(arrays, step.results, strict=True) if not r.is_state]
        top = sum(float(a.ravel() @ jax.ravel()) for a, jax in moved)
        size = sum(float(a.ravel() @ a.ravel()) for a, _ in moved)
        if size and np.isfinite(top) and top > 0:
            rate = top / size
            return next((float(f"{rate:.{n}e}") for n in range(5) if _near(float(f"{rate:.{n}e}"), rate)), rate)
    return None


def _near(one: float, other: float) -> bool:
    return abs(one - other) <= 1e-10 * abs(other)


def _left(steps: Sequence[OptimizerStep], directions: list[list[np.ndarray]], rates: Sequence[float]) -> float | None:
    """Return the largest relative difference that is left; None where anything differs by more than rounding."""
    left = 0.0
    for step, arrays, rate in zip(steps, directions, rates, strict=True):
        for array, result in zip(arrays, step.results, strict=True):
            apart = norm((array if result.is_state else rate * array) - result.jax)
            if not apart <= result.near:
                return None
            left = max(left, apart / (norm(result.jax) or 1.0))
    return left


def told_family(evidence: Evidence, family: Family) -> Told:
    """Say which optimizer the JAX side has, and write torch's as the fix."""
    theirs, fix = family.candidate.call(family.rate), _mended(evidence)
    if family.candidate.every > 1:
        between = ", whose optimizer is given zeros in between" if family.candidate.zeros_between else ""
        says = f"{named(evidence.kind)} makes an update at every step, and the JAX side steps as {theirs}{between}"
        return Told("accumulation", says, fix=fix or "make an update at every step, as torch does", source=DOCS)
    says = f"torch has {named(evidence.kind)}, and the JAX side steps as {theirs} does"
    return Told(
        "another optimizer", says, fix=fix or "take the call of docs/optimizers.md for torch's optimizer", source=DOCS
    )


def _mended(evidence: Evidence) -> Call | str:
    """Write torch's optimizer in optax; "" where that is not one call with a constant rate."""
    own, rates = _own(evidence.kind, evidence.steps[0].groups[0]), set(evidence.rates)
    if own is None or len(rates) > 1 or len(evidence.steps[0].groups) > 1:
        return ""
    call = own.call(evidence.steps[0].rate)
    hooked = any(
        given is not None and step.gradients[name] is not None and not given.equal(step.gradients[name])  # type: ignore[arg-type]
        for step in evidence.steps
        for name, given in step.given.items()
    )
    # What the user's hooks do to torch's gradients, the port does before its optimizer: that must stay.
    return f"{call} instead of the JAX side's optimizer, after its changes to the gradients" if hooked else call
