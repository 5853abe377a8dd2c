"""Calls of optax as values: they print as code, can be bound to the real signature, and can be made."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compare.verdict import fix as code


@dataclass(frozen=True)
class Code:
    """An expression that is printed unchanged: "lambda count: 0.1 / (count + 1)", "..."."""

    text: str

    def __str__(self) -> str:
        return self.text


class Source(str):
    """Source text as a value, which is printed unchanged."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


ELLIPSIS = Code("...")
"""Arguments that the user's call has already."""


@dataclass(frozen=True)
class Call:
    """A call such as `optax.adam(..., eps=1e-08)`."""

    function: str
    """With its module, "optax.adam"."""
    arguments: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        arguments = [written(value) for value in self.arguments]
        arguments += [f"{name}={written(value)}" for name, value in self.keywords.items()]
        return f"{self.function}({', '.join(arguments)})"

    def code(self) -> code.Code:
        """Return the call as a report holds it."""
        keywords = {name: _plain(value) for name, value in self.keywords.items()}
        return code.Code(self.function, tuple(map(written, self.arguments)), keywords)

    def made(self) -> Any:
        """Make the call; its arguments must be numbers, containers and calls."""
        from importlib import import_module

        module, _, name = self.function.rpartition(".")
        function = getattr(import_module(module), name)
        return function(*map(_made, self.arguments), **{k: _made(v) for k, v in self.keywords.items()})


@dataclass(frozen=True)
class Recounted:
    """A schedule at another count: one step for several updates, or restarted after a period."""

    schedule: Call
    every: int = 1
    period: int = 0

    def __str__(self) -> str:
        count = "count" if self.every == 1 else f"count // {self.every}"
        if self.period:
            count = f"{count} % {self.period}" if self.every == 1 else f"({count}) % {self.period}"
        return f"lambda count: {self.schedule}({count})"

    def made(self) -> Any:
        """Make the schedule."""
        schedule = self.schedule.made()
        return lambda count: schedule(count // self.every % self.period if self.period else count // self.every)


def _plain(value: Any) -> Any:
    """Return a number, text or flag as it is, and what has to be made as its source."""
    if isinstance(value, float):
        return float(written(value))
    return value if isinstance(value, bool | int | str) else Source(written(value))


def _made(value: Any) -> Any:
    if isinstance(value, Call | Recounted):
        return value.made()
    if isinstance(value, list):
        return [_made(part) for part in value]
    if isinstance(value, dict):
        return {key: _made(part) for key, part in value.items()}
    return value


_LAST = 1e-14
"""Relative size of rounding in the last digits of what was computed, such as 0.1 * 0.1."""


def written(value: Any) -> str:
    """Write a value as code, numbers in as few digits as give them again."""
    if isinstance(value, bool | Code | Call | Recounted) or value is None:
        return str(value)
    if isinstance(value, float):
        # The shortest text that reads as the same number, or as one that differs in its last digits:
        # 0.010000000000000002, which is 0.1 * 0.1, is 0.01.
        return next(
            f"{value:.{n}g}"
            for n in range(6, 18)
            if n == 17 or abs(float(f"{value:.{n}g}") - value) <= _LAST * abs(value)
        )
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{written(key)}: {written(part)}" for key, part in value.items()) + "}"
    return repr(value)
