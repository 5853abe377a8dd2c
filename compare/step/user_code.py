"""Calls the user's code, and separates the user's errors from those of this package.

Models, losses, optimizers, `batch=` and callbacks are all called by `call_user_code`. What they raise becomes a
`UserCodeError` that names whose code it was, its file and its line. What this package raises while the user's code
runs, in a hook or in an operation that it looks at, becomes an `InternalError`.
"""

import contextlib
import inspect
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from compare.errors import InputError, InternalError, Signal, UserCodeError

if TYPE_CHECKING:
    from types import TracebackType

F = TypeVar("F", bound=Callable[..., Any])

_PACKAGE = str(Path(__file__).parent.parent)

_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))

_FRAMEWORKS = tuple(
    f"{_LIBRARIES[2]}/{name}/"
    for name in ("torch", "functorch", "jax", "jaxlib", "flax", "optax", "equinox", "haiku", "numpy")
)
"""Libraries whose lines do not help a user, even if the user's model is installed next to them."""

_TYPED = ("<stdin>", "<python-input", "<ipython")
"""Names of files that do not exist, but that have the user's code."""

_PASSING: set[CodeType] = set()


def passes_on(function: F) -> F:
    """Mark a function of this package that does little more than call the user's code, or a library for it.

    An error in which it is the last of this package's functions is the user's: torch's operations are called by this
    package, for it to see them, and a shape that does not fit is not its mistake.
    """
    _PASSING.add(function.__code__)
    return function


@passes_on
def call_user_code(
    call: str,
    function: Callable[[], Any],
    *,
    given: object = "",
    inside: Callable[[], str] = lambda: "",
    advice: Callable[[BaseException], str] = lambda error: "",
) -> Any:
    """Call the user's code, and say whose it is if it raises.

    Args:
        call: Whose code it is, as in "the torch model".
        function: Without arguments: `functools.partial`, which adds no line of this package to a traceback.
        given: What it is given, to be shown by `str`.
        inside: Gives the path of the module that is running.
        advice: What to do about an error that came from a library.

    Raises:
        UserCodeError: Where it raises anything, a SystemExit too.
        InternalError: Where what it raised is a bug of this package.

    """
    try:
        return function()
    except (InputError, Signal, InternalError):
        raise  # of an inner call, or meant for who called this one
    except (Exception, SystemExit) as error:
        if _is_ours(error):
            raise InternalError(f"{type(error).__name__}: {error}") from error
        raise UserCodeError(
            call,
            error,
            place=raised_in(error),
            module=inside(),
            given=str(given),
            advice=advice(error) if _in_a_library(error) else "",
        ) from error


def check_takes(call: str, step: Callable[..., Any]) -> None:
    """Check that a step of the user's takes a state and a batch, before it is called with them.

    Raises:
        InputError: If its signature is another one.

    """
    try:
        signature = inspect.signature(step)
    except (TypeError, ValueError):  # a function that has none
        return
    try:
        signature.bind("state", "batch")
    except TypeError:
        raise InputError(
            f"{call}: build() must return (state, step), and step is called as step(state, batch), but it is defined "
            f"with {signature}"
        ) from None


def on_another_device(error: BaseException) -> str:
    """Advise where torch raises that one tensor is on a GPU and another one is not."""
    if not isinstance(error, RuntimeError) or "cuda" not in str(error) or "device" not in str(error):
        return ""
    return "Make both on the same device (device=x.device), or compare on the CPU: device='cpu', or --device cpu"


@contextlib.contextmanager
def at_step(step: int, batches: int) -> Iterator[None]:
    """Let an error of the user's code say at which step it was raised, and on which of the batches."""
    try:
        yield
    except UserCodeError as error:
        if error.step is None:
            error.step, error.batch = step, step % batches
        raise


def raised_in(error: BaseException) -> str:
    """Name the last line of the user's own code that an error came through; "" if it came through none.

    Code that is installed among the libraries counts as the user's where there is no other, but for the standard
    library's.
    """
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_internal(frame.filename)]
    # The last frame of the user's own file is the line to look at; below it are only libraries.
    own = [frame for frame in frames if not frame.filename.startswith(_LIBRARIES)]
    installed = [frame for frame in frames if _is_installed(frame.filename)]
    last = (own or installed)[-1:]
    return "".join(f"{frame.filename}, line {frame.lineno}" for frame in last)


def _is_installed(filename: str) -> bool:
    """Return whether a file is of an installed package, and not of the frameworks themselves."""
    return filename.startswith(_LIBRARIES[2:]) and not filename.startswith(_FRAMEWORKS)


def of_a_library(filename: str) -> bool:
    """Return whether a file is of the standard library, of an installed package, or of this one."""
    return filename.startswith((_PACKAGE, *_LIBRARIES))


def site_of(frame: FrameType | None) -> tuple[int, int]:
    """Identify the user's expression that is being evaluated in a frame, or in the nearest one outside of it."""
    while frame is not None and of_a_library(frame.f_code.co_filename):
        frame = frame.f_back
    return (0, 0) if frame is None else (id(frame.f_code), frame.f_lasti)


def _is_internal(filename: str) -> bool:
    """Return whether a file is this package's, or none at all."""
    return filename.startswith(_PACKAGE) or (filename.startswith("<") and not filename.startswith(_TYPED))


def _frames(error: BaseException) -> list[FrameType]:
    """List the frames that an error came through, the innermost first."""
    found: list[FrameType] = []
    step: TracebackType | None = error.__traceback__
    while step is not None:
        found.append(step.tb_frame)
        step = step.tb_next
    return found[::-1]


def is_users(error: BaseException) -> bool:
    """Return whether an error is the user's: it came through their code, and not from this package inside it."""
    return bool(raised_in(error)) and not _is_ours(error)


def _is_ours(error: BaseException) -> bool:
    """Return whether this package raised an error: whether it is the innermost whose code is no library's."""
    for frame in _frames(error):
        filename = frame.f_code.co_filename
        # Wrappers of this package stand between the user's code and torch in nearly every traceback: they are
        # transparent.
        if frame.f_code in _PASSING or filename.startswith("<"):
            continue
        if filename.startswith(_PACKAGE):
            return True
        if not filename.startswith(_LIBRARIES):
            return False
    return False


def _in_a_library(error: BaseException) -> bool:
    """Return whether a library raised an error, and not a line of the user's own."""
    frames = [frame for frame in _frames(error) if frame.f_code not in _PASSING]
    return not frames or frames[0].f_code.co_filename.startswith(_LIBRARIES)
