"""The errors of this package, and which of them are shown to users."""

import re


class InputError(ValueError):
    """The input cannot be compared. The message says what is wrong and what to do. It is a ValueError."""


class UserCodeError(InputError):
    """The user's own code raised an error while it was called. `__cause__` is that error.

    Args:
        call: Whose code it is, as in "the torch model".
        error: What was raised.
        place: The line of the user's code that raised it, as in "net.py, line 8"; "" if it came through none.
        module: The path of the module that was running, as in "encoder.0"; "" if there is none.
        given: What the code was given, as in "inputs float32 (4, 3)"; "" if that says nothing.
        advice: What to do about it; "" if that is not known.

    """

    def __init__(
        self, call: str, error: BaseException, *, place: str = "", module: str = "", given: str = "", advice: str = ""
    ) -> None:
        super().__init__(call, error)
        self.call, self.error, self.place = call, error, place
        self.module, self.given, self.advice = module, given, advice
        self.step: int | None = None
        """The step at which it was raised, from 0; None before the first."""
        self.batch: int | None = None
        """The number of the batch in the list that the user gave; None if it is not known."""

    def __str__(self) -> str:
        message = told(self.error)
        inside = f"in module {self.module}" if self.module else ""
        place = ", ".join(part for part in (self.place, inside) if part)
        text = f"{self.call} raised {type(self.error).__name__}: {message}" + (f" ({place})" if place else "")
        if self.given:
            text += f", given {self.given}"
        if self.step is not None:
            text += f", at step {self.step}"
        if self.batch is not None:
            text += f", batches[{self.batch}]"
        return f"{text}. {self.advice}" if self.advice else text


def told(error: BaseException) -> str:
    """Return the first paragraph of an error's message in one line, without a full stop.

    Where it ends with a colon, as JAX's of a loop whose types differ does, the first item of the list follows.
    """
    first, *others = [part.strip() for part in re.split(r"\n\s*\n", str(error)) if part.strip()] or [""]
    if first.endswith(":") and others:
        item, *_ = re.split(r"\n\s*[*-] ", others[0].removeprefix("* ").removeprefix("- "))
        first = f"{first} {item}".rstrip(";")
    return " ".join(first.split()).removesuffix(".")


class Signal(Exception):  # noqa: N818 - not an error by itself
    """What this package raises through the user's code and catches again itself. It is never shown to users."""


class NondeterministicError(Signal):
    """A run drew other random numbers than the one that it was to repeat. The message says which."""


class NotApplicable(Signal, RuntimeError):  # noqa: N818 - not an error by itself
    """A change of the torch side cannot be made here, such as a rewrite of a call that lacks the argument.

    The search for a cause continues with the next. An error of any other kind is a bug of this package:
    `compare.bugs`.
    """


class InternalError(Exception):
    """A bug of this package, raised inside the user's code. `__cause__` is what went wrong."""
