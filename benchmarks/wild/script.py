"""Parts of a training script, run as they stand: what it defines, what it makes, and the body of its loop."""

import ast
import textwrap
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

LIBRARIES = (
    "torch",
    "numpy",
    "jax",
    "flax",
    "optax",
    "typing",
    "functools",
    "dataclasses",
    "collections",
    "os",
    "math",
    "inspect",
    "contextlib",
    "time",
)
"""What a script imports is imported; what else it does, such as simulators and loggers, stands aside."""


class Script:
    """A training script.

    Args:
        path: Its file.

    """

    def __init__(self, path: Path) -> None:
        self._path, self._lines = path, path.read_text().splitlines(keepends=True)

    def definitions(self) -> dict[str, Any]:
        """Run its imports, classes and functions, and give the names that they define."""
        tree = ast.parse("".join(self._lines))
        names: dict[str, Any] = {
            "__name__": "__main__",
            "__file__": str(self._path),
            "gym": SimpleNamespace(Wrapper=object),
        }
        for node in tree.body:
            if isinstance(node, ast.Import):
                node.names = [name for name in node.names if name.name.partition(".")[0] in LIBRARIES]
            if _known(node):
                exec(compile(ast.Module([node], []), str(self._path), "exec"), names)
        return names

    def part(self, first: str, end: str, occurrence: int = 1) -> CodeType:
        """Give the lines from the one that begins with `first` to before the next that begins with `end`."""
        starts = [at for at, line in enumerate(self._lines) if line.strip().startswith(first)]
        start = starts[occurrence - 1]
        stop = next(at for at in range(start + 1, len(self._lines)) if self._lines[at].strip().startswith(end))
        text = "\n" * start + textwrap.dedent("".join(self._lines[start:stop]))
        return compile(text, str(self._path), "exec")


def _known(node: ast.stmt) -> bool:
    """Tell whether a statement defines something, or imports from one of the libraries."""
    if isinstance(node, ast.Import):
        return bool(node.names)
    if isinstance(node, ast.ImportFrom):
        return str(node.module).partition(".")[0] in LIBRARIES and "board" not in str(node.module)
    return isinstance(node, ast.ClassDef | ast.FunctionDef)
