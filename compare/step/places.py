"""The line of the user's own code that something comes from."""

import itertools
import linecache
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import CodeType, FrameType

from compare.step.user_code import of_a_library

_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep

Span = tuple[int, int, int, int]
"""Of an expression: its first and last line, from 1, its first column and the one behind its last, in UTF-8 bytes."""

JAX_PACKAGES = ("jax", "jaxlib", "flax", "optax", "equinox", "haiku", "chex")
"""Whose lines are not the user's on the JAX side."""


@dataclass(frozen=True)
class Source:
    """A line of the user's own code, and the expression in it."""

    file: str
    line: int
    text: str
    """The line itself, as it was when the code ran."""
    span: Span | None = None
    """Where the expression is; None where Python does not know it."""

    def __str__(self) -> str:
        """Like "my_port.py:27"."""
        return f"{os.path.basename(self.file)}:{self.line}"

    @property
    def expression(self) -> str:
        """The expression itself, if it is within the line; else the line."""
        if self.span is None or self.span[0] != self.span[1]:
            return self.text
        whole = linecache.getline(self.file, self.line).rstrip("\n")
        found = whole.encode()[self.span[2] : self.span[3]].decode("utf-8", "ignore")
        return found if found and found in self.text else self.text

    @property
    def is_installed(self) -> bool:
        """Whether it is code of an installed package, which is not the user's to change."""
        return of_a_library(self.file)


def users_line(frames: Iterable[tuple[str, int]], *packages: str) -> str:
    """Name the innermost line that is neither in one of some packages nor in Python's own library.

    Args:
        frames: Files and line numbers, the innermost first.
        packages: Names of packages that are loaded, such as "torch".

    Returns:
        "model.py:12", or nothing where there is no such line below the call of this package.

    """
    known = list(frames)
    number = users_frame([file for file, _ in known], packages)
    return "" if number is None else f"{os.path.basename(known[number][0])}:{known[number][1]}"


def source(frames: Iterable[tuple[CodeType, int]], *packages: str) -> Source | None:
    """Return the innermost expression of the user's, of frames as code and the number of the last instruction."""
    known = list(frames)
    number = users_frame([code.co_filename for code, _ in known], packages)
    if number is None:
        return None
    code, last = known[number]
    first, end, column, behind = next(itertools.islice(code.co_positions(), last // 2, None), (None,) * 4)
    line = first or code.co_firstlineno
    text = linecache.getline(code.co_filename, line).strip()
    if end is None or column is None or behind is None:
        return Source(code.co_filename, line, text)
    return Source(code.co_filename, line, text, (line, end, column, behind))


def without_own(frames: Iterable[tuple[CodeType, int]]) -> list[tuple[CodeType, int]]:
    """Leave out this package's frames: for what it does itself where a call of the user's is."""
    return [(code, last) for code, last in frames if not code.co_filename.startswith(_OWN)]


def source_here(*packages: str, made: object = None) -> Source | None:
    """Return the expression of the user's that calls this function, through whatever library.

    Args:
        packages: As for `users_line`.
        made: An object that is being made: its own constructors are not who makes it.

    """
    frames = itertools.dropwhile(lambda frame: frame.f_code.co_filename.startswith(_OWN), _outwards(sys._getframe(1)))
    kept = (frame for frame in frames if made is None or not _is_method_of(made, frame))
    return source(((frame.f_code, frame.f_lasti) for frame in kept), *packages)


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_method_of(value: object, frame: FrameType) -> bool:
    code = frame.f_code
    return code.co_argcount > 0 and frame.f_locals.get(code.co_varnames[0]) is value


def users_frame(files: Sequence[str], packages: Iterable[str]) -> int | None:
    """Return the number of the innermost frame that is the user's, of the frames' files, innermost first."""
    inside = tuple(
        os.path.dirname(sys.modules[name].__file__ or "") + os.sep for name in packages if name in sys.modules
    )
    library = os.path.dirname(os.__file__) + os.sep
    for number, file in enumerate(files):
        if file.startswith(_OWN):
            return None
        library_code = file.startswith(library) and "site-packages" not in file
        if not (file.startswith((*inside, "<")) or library_code):
            return number
    return None
