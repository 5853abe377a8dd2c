"""Prints text on a stream that cannot encode every character, such as a redirected stream on Windows."""

import codecs
import contextlib
from collections.abc import Iterator
from typing import Any

_PLAIN = {"✓": "+", "≈": "~", "✗": "x", "…": "..."}
"""Replacements for characters that an encoding lacks; "?" for any other."""


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(character, "?") for character in error.object[error.start : error.end]), error.end


codecs.register_error("netparity", _plain)


@contextlib.contextmanager
def printable(stream: Any) -> Iterator[None]:
    """Let a stream replace the characters that its encoding lacks, while this lasts."""
    if not hasattr(stream, "reconfigure"):
        yield
        return
    before = stream.errors
    stream.reconfigure(errors="netparity")
    try:
        yield
    finally:
        stream.reconfigure(errors=before)
