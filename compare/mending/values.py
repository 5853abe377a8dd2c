"""Finds the name of a value inside the model at a place in the user's code.

A value is known by the layers that give it and that take it: lines with `Role.CALLED` are of the calls that give it,
those with `Role.GIVEN` of the calls that take it first, and those with `Role.DEFINED` of the methods that do. A name is
the value at another place too if the function is the same and nothing is assigned to the name in between.
"""

from collections.abc import Iterator, Sequence

import libcst
from libcst import matchers

from compare.mending.syntax import SourceFile, Unfit
from compare.verdict.divergence import Line, Role


def gives_value(file: SourceFile, node: libcst.BaseExpression, lines: Sequence[Line]) -> bool:
    """Return whether an expression has the call in it that gives a value."""
    start, end = file.range(node)
    calls = [file.range(each) for each in _calls(file, lines, Role.CALLED)]
    return any(start <= first and last <= end for first, last in calls)


def name_of_value(file: SourceFile, lines: Sequence[Line], at: libcst.BaseExpression) -> libcst.BaseExpression:
    """Return the name that a value has where an expression stands.

    Raises:
        Unfit: If it has none, or that is not known.

    """
    function = file.above(at, libcst.FunctionDef)
    if function is not None:
        for name, since in _named(file, lines, function):
            if not _assigned_between(file, function, name.value, since, at):
                return name
    raise Unfit("your code has no name there for what the fix takes")


def _named(
    file: SourceFile, lines: Sequence[Line], function: libcst.FunctionDef
) -> Iterator[tuple[libcst.Name, libcst.CSTNode]]:
    """List names of the value in a function, each with where it is known to be the value."""
    for call in _calls(file, lines, Role.GIVEN):
        given = call.args[0].value if call.args and not call.args[0].keyword else None
        if file.above(call, libcst.FunctionDef) is function and isinstance(given, libcst.Name):
            yield given, call
    for call in _calls(file, lines, Role.CALLED):
        statement = file.parent(call)
        if isinstance(statement, libcst.Assign) and file.above(call, libcst.FunctionDef) is function:
            match statement.targets:
                case [libcst.AssignTarget(target=libcst.Name() as name)]:
                    yield name, statement
    starts = {line.source.line for line in lines if line.role is Role.DEFINED and line.source.file == file.file}
    first = min([file.line(function), *(file.line(each) for each in function.decorators)])
    parameters = function.params.params
    if len(parameters) > 1 and not starts.isdisjoint(range(first, file.line(function) + 1)):
        yield parameters[1].name, parameters[1].name  # the first is `self`


def _calls(file: SourceFile, lines: Sequence[Line], role: Role) -> Iterator[libcst.Call]:
    for line in lines:
        if line.role is role and line.source.file == file.file:
            try:
                node = file.expression(line.source.span)
            except Unfit:
                continue
            if isinstance(node, libcst.Call):
                yield node


def _assigned_between(
    file: SourceFile, function: libcst.FunctionDef, name: str, since: libcst.CSTNode, at: libcst.CSTNode
) -> bool:
    """Return whether a name may have another value where one expression stands than where another does.

    An assignment counts from its end on: what stands in it is computed before.
    """
    first, last = sorted([file.range(since)[isinstance(since, libcst.Assign)], file.range(at)[0]])
    for kind in _ASSIGNMENTS:
        for each in file.nodes(kind):
            if file.above(each, libcst.FunctionDef) is not function or name not in _targets(each):
                continue
            in_a_loop = file.above(each, libcst.For) or file.above(each, libcst.While) or isinstance(each, libcst.For)
            if in_a_loop or first < file.range(each)[1] <= last:
                return True
    return False


_ASSIGNMENTS: tuple[type[libcst.CSTNode], ...] = (
    *(libcst.Assign, libcst.AugAssign, libcst.AnnAssign),
    *(libcst.For, libcst.NamedExpr, libcst.AsName),
)


def _targets(node: libcst.CSTNode) -> set[str]:
    """Return the names that a statement assigns to."""
    match node:
        case libcst.Assign(targets=targets):
            places: list[libcst.CSTNode] = [each.target for each in targets]
        case libcst.AsName(name=target):
            places = [target]
        case _:
            places = [getattr(node, "target")]  # noqa: B009 - of four classes that share no base with it
    found = [name for place in places for name in matchers.findall(place, matchers.Name())]
    return {each.value for each in found if isinstance(each, libcst.Name)}
