"""The patch of a finding: the edits that its fix makes in the user's own files, also as a diff."""

import ast
import difflib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from compare.mending.functions import (
    REDUCTIONS,
    change_computed,
    change_result,
    exchange_constant,
    exchange_function,
    exchange_reduction,
    set_layer,
    take_element,
)
from compare.mending.gradients import change_gradients
from compare.mending.losses import exchange_loss
from compare.mending.numbers import exchange_numbers
from compare.mending.optimizers import mend_optimizer
from compare.mending.rewriting import Values, rewrite
from compare.mending.syntax import Edit, SourceFile, Unfit, applied, before_and_after, parsed
from compare.verdict.divergence import Line, Role
from compare.verdict.fix import Code

REDUCTION_CALLS = tuple(f"jnp.{name}" for name in REDUCTIONS)

Mend = Callable[[SourceFile, Code, list[Line]], list[Edit]]


@dataclass(frozen=True)
class Patch:
    """What a fix changes in the user's files."""

    edits: tuple[Edit, ...]

    @property
    def diff(self) -> str:
        """The change as a unified diff, with paths from the working directory."""
        return diff(self.edits)

    @functools.cached_property
    def changes(self) -> tuple["Change", ...]:
        """The lines that change, in order."""
        return tuple(_changes(self.edits))

    def to_dict(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return {"diff": self.diff, "edits": [edit._asdict() for edit in self.edits]}


@dataclass(frozen=True)
class Change:
    """Neighbouring lines of a file that change."""

    file: str
    line: int
    """The first of them, from 1."""
    removed: tuple[str, ...]
    added: tuple[str, ...]

    @property
    def place(self) -> str:
        """Like "my_port.py:27"."""
        return f"{os.path.basename(self.file)}:{self.line}"

    @property
    def signed(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """The lines that go and those that come, with their signs."""
        return ("-", self.removed), ("+", self.added)


def patch_of(codes: Sequence[Code], lines: Sequence[Line], values: Values = MappingProxyType({})) -> Patch:
    """Put fixes that are code into the files that some lines are of.

    Args:
        codes: The fixes.
        lines: What the difference comes from.
        values: The lines that have the values which names of a fix stand for.

    Raises:
        Unfit: If not all of them can be put in; it says why.

    """
    if not codes:
        raise Unfit("the fix is not one expression, so where it belongs in your code is not known")
    if not all(code.whole for code in codes):
        raise Unfit("the fix replaces a part of what your code computes there, and which part is not known")
    files: dict[str, SourceFile] = {}
    unique = tuple(dict.fromkeys(edit for code in codes for edit in _edits(code, lines, values, files)))
    names = {edit.file for edit in unique}
    after = {name: applied(files[name].text, [edit for edit in unique if edit.file == name]) for name in names}
    if all(after[name] == files[name].text for name in names):
        # What it was found for is somewhere else.
        raise Unfit("the line has the fix already")
    for text in after.values():
        try:
            ast.parse(text.removeprefix("\ufeff"))
        except SyntaxError as error:
            raise Unfit("with the fix, the line would not be valid Python") from error
    return Patch(unique)


def _changes(edits: Iterable[Edit]) -> Iterator[Change]:
    for name, before, after in before_and_after(edits):
        old, new = before.splitlines(), after.splitlines()
        for what, start, end, first, last in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
            if what != "equal":
                yield Change(name, start + 1, tuple(old[start:end]), tuple(new[first:last]))


def diff(edits: Iterable[Edit]) -> str:
    """Show edits as a unified diff; edits of one file together."""
    shown = list[str]()
    for name, before, after in before_and_after(edits):
        short = os.path.relpath(name)
        path = name if short.startswith("..") else short.replace(os.sep, "/")
        old, new = (text.splitlines(keepends=True) for text in (before, after))
        shown += difflib.unified_diff(old, new, f"a/{path}".replace("//", "/"), f"b/{path}".replace("//", "/"), n=1)
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in shown)


def together(patches: Iterable[Patch]) -> list[Edit]:
    """Return the edits of several patches; one that changes what an earlier one changes is left out."""
    edits: list[Edit] = []
    for patch in patches:
        several = list(dict.fromkeys([*edits, *patch.edits]))
        try:
            for name in dict.fromkeys(edit.file for edit in several):
                applied("", [edit for edit in several if edit.file == name])
        except Unfit:
            continue
        edits = several
    return edits


def _edits(code: Code, lines: Sequence[Line], values: Values, files: dict[str, SourceFile]) -> list[Edit]:
    """Return the edits for one expression of a fix, at each of the places where it belongs."""
    jax = [line for line in lines if line.side == "jax" and not line.source.is_installed]
    if code.before:  # what it replaces may also stand where a value is computed that it names
        jax += [line for each in values.values() for line in each if line not in jax]
    reason = "the expression of your file that it changes is not known"
    for roles, mend in _ways(code, values):
        chosen = [line for line in jax if line.role in roles]
        if not chosen:
            continue
        for name in dict.fromkeys(line.source.file for line in chosen):
            if name not in files:
                files[name] = parsed(name)
            files[name].check([line.source for line in chosen if line.source.file == name])
        try:
            return _in_files(files, mend, code, chosen, each=roles != (Role.COMPUTED,))
        except Unfit as error:
            reason = str(error)
    raise Unfit(reason)


def _in_files(files: dict[str, SourceFile], mend: Mend, code: Code, lines: Sequence[Line], *, each: bool) -> list[Edit]:
    """Return the edits in each file that some lines are of; without `each`, in the only one where the fix fits."""
    found, reasons = [], list[Unfit]()
    for name in dict.fromkeys(line.source.file for line in lines):
        try:
            found.append(mend(files[name], code, [line for line in lines if line.source.file == name]))
        except Unfit as error:
            reasons.append(error)
    if reasons and (each or not found):
        raise reasons[0]
    if not each and len(found) > 1:
        raise Unfit("which of your files it changes is not known")
    return [edit for edits in found for edit in edits]


def _ways(code: Code, values: Values) -> list[tuple[tuple[Role, ...], Mend]]:
    """List at which lines a fix belongs, and what puts it there, by what it is an expression of."""
    names = {node.id for node in ast.walk(ast.parse(str(code), mode="eval")) if isinstance(node, ast.Name)}
    each = _at_each
    if code.numbers:
        return [((Role.COMPUTED,), exchange_numbers)]
    if "gradients" in names:
        return [((Role.GIVEN,), each(change_gradients))]
    if code.before:
        return [((Role.CALLED, Role.COMPUTED), partial(rewrite, values=values))]
    if names & {"output", "target", "logits", "labels"}:
        return [((Role.DEFINED,), each(exchange_loss))]
    if code.call.startswith("optax.") and "x" not in names:
        return [((Role.MADE,), each(mend_optimizer))]
    if "y" in names:
        return [
            ((Role.DEFINED,), each(exchange_loss)),
            ((Role.CALLED, Role.GIVEN), each(change_result)),
            ((Role.COMPUTED,), change_computed),
        ]
    if code.call == "jnp.take":
        return [((Role.COMPUTED,), take_element)]
    if code.call in REDUCTION_CALLS and code.arguments == ("...",) and code.keywords.keys() <= {"axis"}:
        return [((Role.COMPUTED,), exchange_reduction)]
    if "x" in names and not code.call:
        return [((Role.COMPUTED,), exchange_constant)]
    return [((Role.MADE,), each(set_layer)), ((Role.COMPUTED,), exchange_function)]


def _at_each(mend: Callable[[SourceFile, Code, Line], list[Edit]]) -> Mend:
    def all_of(file: SourceFile, code: Code, lines: list[Line]) -> list[Edit]:
        return [edit for line in lines for edit in mend(file, code, line)]

    return all_of
