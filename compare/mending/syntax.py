"""A file of the user's as a syntax tree: expressions by their place, what names mean there, and edits of single nodes.

Only the text of the nodes that change is rewritten. Everything else stays as it is, byte for byte.
"""

import functools
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import libcst
from libcst.metadata import MetadataWrapper, ParentNodeProvider, PositionProvider, Scope, ScopeProvider

from compare.step.places import Source, Span

Node = TypeVar("Node", bound=libcst.CSTNode)


class Edit(NamedTuple):
    """Other text in the place of some of a file's."""

    file: str
    start: int
    """In characters from the beginning of the file."""
    end: int
    text: str


def read(file: str) -> str:
    """Read a file as edits count its characters: with its own line ends, and with a byte order mark if it has one."""
    return Path(file).read_bytes().decode("utf-8")


def before_and_after(edits: Iterable[Edit]) -> Iterator[tuple[str, str, str]]:
    """Yield each file that edits change, with its text before and after them.

    Raises:
        Unfit: If two of them change the same text.

    """
    edits = list(edits)
    for file in dict.fromkeys(edit.file for edit in edits):
        before = read(file)
        yield file, before, applied(before, [edit for edit in edits if edit.file == file])


class Unfit(Exception):  # noqa: N818 - the search goes on with the next fix
    """A fix cannot be put into the file. The message says why, to the user."""


def parsed(file: str) -> "SourceFile":
    """Read and parse a file; one that was parsed before, and has not changed since, is not parsed again.

    Raises:
        Unfit: If it cannot be read or parsed.

    """
    try:
        return _parsed(file, read(file))
    except (OSError, UnicodeDecodeError, libcst.ParserSyntaxError) as error:
        raise Unfit(f"{file} cannot be read: {error}") from error


@functools.lru_cache(maxsize=4)  # a file of a thousand lines takes a second, and a report has a fix for each finding
def _parsed(file: str, text: str) -> "SourceFile":
    return SourceFile(file, text)


class SourceFile:
    """A Python file, parsed."""

    def __init__(self, file: str, text: str) -> None:
        self.file, self.text = file, text
        self._wrapper = MetadataWrapper(libcst.parse_module(text), unsafe_skip_copy=True)
        self.module = self._wrapper.module
        self._positions = self._wrapper.resolve(PositionProvider)
        self._parents = self._wrapper.resolve(ParentNodeProvider)
        self._lines = [0, *itertools.accumulate(map(len, self.text.splitlines(keepends=True)))]
        self._by_range: dict[tuple[int, int], list[libcst.CSTNode]] = {}
        for node in self._positions:
            self._by_range.setdefault(self.range(node), []).append(node)

    def range(self, node: libcst.CSTNode) -> tuple[int, int]:
        """Return where a node begins and ends, in characters, without parentheses around it."""
        at = self._positions[node]
        return self._offset(at.start.line, at.start.column), self._offset(at.end.line, at.end.column)

    def _offset(self, line: int, column: int) -> int:
        return self._lines[min(line - 1, len(self._lines) - 1)] + column

    def check(self, sources: Iterable[Source]) -> None:
        """Raise Unfit if the lines are no longer what they were when the code ran."""
        lines = self.text.splitlines()
        for source in sources:
            if source.line > len(lines) or lines[source.line - 1].strip() != source.text:
                raise Unfit(f"{source} has changed since it ran")

    def expression(self, span: Span | None) -> libcst.BaseExpression:
        """Return the expression at a place, as Python numbers it: in UTF-8 bytes."""
        if span is None:
            raise Unfit("the place of the expression is not known")
        first, last, column, behind = span
        key = self._offset(first, self._characters(first, column)), self._offset(last, self._characters(last, behind))
        found = [node for node in self._by_range.get(key, []) if isinstance(node, libcst.BaseExpression)]
        if not found:
            raise Unfit("no expression is at this place: has the file changed?")
        return found[0]

    def _characters(self, line: int, column: int) -> int:
        start = self._lines[line - 1]
        text = self.text[start : self._lines[line]] if line < len(self._lines) else ""
        return len(text.encode()[:column].decode("utf-8", "ignore"))

    def nodes(self, kind: type[Node]) -> Iterator[Node]:
        """List the nodes of a kind, in order of their beginning."""
        found = [node for node in self._positions if isinstance(node, kind)]
        yield from sorted(found, key=self.line)

    def line(self, node: libcst.CSTNode) -> int:
        """Return the line at which a node begins, from 1."""
        line: int = self._positions[node].start.line
        return line

    def scope(self, node: libcst.CSTNode) -> Scope | None:
        """Return what names mean where a node is."""
        return self._wrapper.resolve(ScopeProvider).get(node)

    def parent(self, node: libcst.CSTNode) -> libcst.CSTNode | None:
        """Return the node that a node is part of."""
        return self._parents.get(node)

    def above(self, node: libcst.CSTNode, kind: type[Node]) -> Node | None:
        """Return the nearest node of a kind that a node is inside."""
        at = self.parent(node)
        while at is not None and not isinstance(at, kind):
            at = self.parent(at)
        return at

    def calls_in_statement(self, node: libcst.CSTNode) -> list[libcst.Call]:
        """List the calls in the simple statement that a node is in."""
        statement = self.above(node, libcst.SimpleStatementLine)
        if statement is None:
            return []
        start, end = self.range(statement)
        return [call for call in self.nodes(libcst.Call) if start <= self.range(call)[0] and self.range(call)[1] <= end]

    def code(self, node: libcst.CSTNode) -> str:
        """Return a node's text."""
        start, end = self.range(node)
        return self.text[start:end]

    def exchanged(self, node: libcst.CSTNode, text: str) -> Edit:
        """Put other text in the place of a node."""
        return Edit(self.file, *self.range(node), text)

    @property
    def names(self) -> Mapping[str, Any]:
        """What the module's names mean, if it is imported."""
        for module in list(sys.modules.values()):
            if getattr(module, "__file__", None) == self.file:
                return vars(module)
        return {}

    def meaning(self, node: libcst.CSTNode) -> Any:
        """Return the object that a name or an attribute of a name stands for, as far as the module knows; else None."""
        match node:
            case libcst.Name(value=name):
                return self.names.get(name)
            case libcst.Attribute(value=value, attr=libcst.Name(value=name)):
                return getattr(self.meaning(value), name, None)
        return None


def applied(text: str, edits: list[Edit]) -> str:
    """Return a text with edits, which must not overlap.

    Raises:
        Unfit: If two do.

    """
    parts, at = [], 0
    for edit in sorted(dict.fromkeys(edits), key=lambda each: (each.start, each.end)):
        if edit.start < at:
            raise Unfit("two fixes change the same expression")
        parts += [text[at : edit.start], edit.text]
        at = edit.end
    return "".join([*parts, text[at:]])
