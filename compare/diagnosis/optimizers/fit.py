"""Settings of an optimizer, fitted until its update is the one that the JAX side made."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from compare.diagnosis.conventions.optimizers import CONVENTIONS, Convention
from compare.diagnosis.optimizers.update import GRADIENT, Updates
from compare.numerics.fitting import ITERATIONS, fitted

FLAGS = ("nesterov", "centered", "amsgrad", "maximize", "decoupled_weight_decay")

Changed = dict[str, Any]


def one_change(updates: Updates) -> Iterator[tuple[Changed, Convention | None, float]]:
    """Try what may be otherwise, one thing after the other."""
    now = updates.settings
    for name in FLAGS:
        if isinstance(updates.group.get(name), bool):
            flag = {name: not updates.group[name]}
            yield flag, None, updates.apart(updates(flag))
    for convention in _conventions(updates):
        yield {}, convention, updates.apart(updates({}, convention))
    for name, value in now.items():

        def run(other: float, name: str = name) -> np.ndarray | None:
            return updates({name: other})

        apart, other = fitted(value, run, updates.target, updates.apart)
        yield {name: other}, None, apart


def several_changes(updates: Updates) -> Iterator[tuple[Changed, Convention | None, float]]:
    """Try what may be otherwise, several things at once."""
    now = updates.settings
    flags: list[Changed] = [{n: not updates.group[n]} for n in FLAGS if isinstance(updates.group.get(n), bool)]
    for flag, convention in itertools.product([{}, *flags], [None, *_conventions(updates)]):
        changed, apart = _jointly(updates, convention, flag, now)
        if len(changed) + (convention is not None) <= SEVERAL:
            yield changed, convention, apart
    # A first step hardly tells a scaled gradient from another decay of the moments: fit few numbers beside it.
    unclipped = updates.size / (updates.stepped_on or 1.0)
    for others in itertools.chain(*(itertools.combinations(now, size) for size in range(1, SEVERAL))):
        changed, apart = _jointly(updates, None, {}, {GRADIENT: unclipped} | {name: now[name] for name in others})
        yield changed, None, apart


SEVERAL = 3
"""Causes at once, at most: with more numbers to fit, anything could be explained."""


def _conventions(updates: Updates) -> list[Convention]:
    return [each for each in CONVENTIONS if updates.kind in each.optimizers]


def _jointly(
    updates: Updates, convention: Convention | None, flag: Changed, now: Mapping[str, float]
) -> tuple[Changed, float]:
    """Fit the settings that are `now` as given, all at once, by Gauss-Newton steps."""
    values = np.array(list(now.values()))

    def at(numbers: np.ndarray) -> np.ndarray | None:
        return updates({**dict(zip(now, numbers.tolist(), strict=True)), **flag}, convention)

    best = (np.inf, values)
    # The state comes first: from a wrong one, an update tells little of what made it.
    for rows in (updates.of_state, np.full(updates.target.shape, True)):
        given = at(values) if rows.any() else None
        for _ in range(ITERATIONS):
            if given is None:
                break
            best = min(best, (updates.apart(given), values), key=lambda pair: pair[0])
            left = (updates.target - given)[rows]
            if best[0] <= 1 or np.linalg.norm(left) <= 1:
                break
            columns = []
            for i, value in enumerate(values):
                h = max(1e-5 * abs(value), 1e-9)
                moved = at(values + h * np.eye(len(values))[i])
                columns.append(np.zeros_like(left) if moved is None else (moved - given)[rows] / h)
            jacobian = np.stack(columns, axis=1)
            sizes = np.linalg.norm(jacobian, axis=0)
            sizes[sizes == 0] = 1
            if not np.isfinite([*sizes, np.linalg.norm(left)]).all():  # with a setting that overflows
                break
            fresh = values + np.linalg.lstsq(jacobian / sizes, left, rcond=1e-10)[0] / sizes
            values = np.where((values >= 0) & (fresh < 0), values / 10, fresh)
            given = at(values)
    apart, values = best
    changed = dict(zip(now, values.tolist(), strict=True))
    if apart > 1:
        return changed, apart
    for name in now:  # what need not be otherwise is not
        fewer = {key: value for key, value in changed.items() if key != name}
        if (left := updates.apart(updates({**fewer, **flag}, convention))) <= 1:
            changed, apart = fewer, left
    for digits in range(7):
        short = {name: float(f"{value:.{digits}e}") for name, value in changed.items()}
        short = {name: value for name, value in short.items() if value != updates.settings.get(name)}
        if (left := updates.apart(updates({**short, **flag}, convention))) <= 1:
            changed, apart = short, left
            break
    return {**changed, **flag}, apart


def with_distinct_digits(now: Any, value: Any) -> tuple[str, str]:
    """Show two numbers with as many digits as tell them apart."""
    if isinstance(value, bool):
        return str(now), str(value)
    digits = next(n for n in range(6, 18) if n == 17 or f"{now:.{n}g}" != f"{value:.{n}g}")
    return f"{now:.{digits}g}", f"{value:.{digits}g}"


def shifted(rate: float, rates: Sequence[float]) -> str:
    """Tell whether a learning rate is that of the step before, or of the step after."""
    *_, now, after = rates
    before = rates[-3] if len(rates) > 2 else now
    for other, name in ((before, "previous"), (after, "next")):
        if other != now and abs(rate - other) <= 1e-6 * abs(other):
            return name
    return ""
