"""Records bugs of this package in the search for a cause: they are reported, never hidden as "no cause found".

A change that is tried on the torch side may be impossible there; it then raises `NotApplicable`, and the next is tried.
Anything else that it raises is a bug. It must not end the search, nor take the report with it, and it must not pass
unnoticed either.
"""

import contextlib
import traceback
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

ADVICE = "The verdict does not depend on it. Please report this error in netparity; the JSON has its traceback:"


@dataclass(frozen=True)
class Bug:
    """One error of this package's own."""

    doing: str
    """What was being done, as in "the cause at fc1"."""
    error: str
    """Like "KeyError: 'eps'"."""
    traceback: str

    def __str__(self) -> str:
        return f"{self.doing} failed: {self.error}"


_BUGS: ContextVar[list[Bug] | None] = ContextVar("bugs", default=None)


@contextlib.contextmanager
def collected() -> Iterator[list[Bug]]:
    """Collect the bugs that are reported while this lasts."""
    found: list[Bug] = []
    token = _BUGS.set(found)
    try:
        yield found
    finally:
        _BUGS.reset(token)


def attempt(doing: str, work: Callable[[], T]) -> T | None:
    """Do some of what a report can do without; if it fails, keep the error, and give None.

    The verdict is known by then, and what was found stands. Ctrl-C ends it all the same.
    """
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - whatever goes wrong in a search must not take the report with it
        report(doing, error)
        return None


def report(doing: str, error: BaseException) -> None:
    """Keep a bug for the report; where nothing collects bugs, raise it."""
    found = _BUGS.get()
    if found is None:
        raise error
    text = "".join(traceback.format_exception(error))
    found.append(Bug(doing, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}", text))
