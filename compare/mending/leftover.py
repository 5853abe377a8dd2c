"""Finds what a patch leaves unused in the user's file: an import, a helper, a variable."""

import ast
from collections import Counter
from collections.abc import Iterator


def unused_after(before: str, after: str) -> list[tuple[str, int]]:
    """List names that a file defines and no longer reads, with their lines; it read them before its change.

    A name that is read anywhere in the file counts as used, in whichever scope: nothing is listed that may be needed.
    """
    old, new = (ast.parse(text.encode()) for text in (before, after))  # bytes may have a byte order mark
    gone = _read(old).keys() - _read(new).keys()
    return sorted({(name, line) for name, line in _defined(new) if name in gone}, key=lambda each: each[1])


def _read(tree: ast.AST) -> Counter[str]:
    names = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
    found = Counter(node.id for node in names if isinstance(node.ctx, ast.Load))
    # What `__all__` exports, or a string annotation names, is read too.
    strings = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    found.update(text for text in strings if text.isidentifier())
    return found


def _defined(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        match node:
            case ast.Import() | ast.ImportFrom():
                for alias in node.names:
                    yield alias.asname or alias.name.partition(".")[0], node.lineno
            case ast.FunctionDef() | ast.ClassDef():
                yield node.name, node.lineno
            case ast.Name(ctx=ast.Store()):
                yield node.id, node.lineno
