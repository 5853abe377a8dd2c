"""The line of the user's own code that something comes from."""

import os
import sys
from collections.abc import Iterable

_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def users_line(frames: Iterable[tuple[str, int]], *packages: str) -> str:
    """Name the innermost line that is neither in one of some packages nor in Python's own library.

    Args:
        frames: Files and line numbers, the innermost first.
        packages: Names of packages that are loaded, such as "torch".

    Returns:
        "model.py:12", or nothing where there is no such line below the call of this package.

    """
    inside = tuple(
        os.path.dirname(sys.modules[name].__file__ or "") + os.sep for name in packages if name in sys.modules
    )
    library = os.path.dirname(os.__file__) + os.sep
    for file, line in frames:
        if file.startswith(_OWN):
            return ""
        library_code = file.startswith(library) and "site-packages" not in file
        if not (file.startswith((*inside, "<")) or library_code):
            return f"{os.path.basename(file)}:{line}"
    return ""
