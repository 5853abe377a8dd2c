"""Fixes of a loss: the expression that its function returns is rewritten."""

import ast
from collections.abc import Iterator, Sequence

import libcst

from compare.mending.functions import substituted
from compare.mending.names import MODULES, Naming
from compare.mending.syntax import Edit, SourceFile, Unfit
from compare.verdict.divergence import Line
from compare.verdict.fix import Code

_TAKEN = ({"output", "target"}, {"logits", "labels"})
"""What a loss is called with, in the words of the fixes."""


def exchange_loss(file: SourceFile, code: Code, line: Line) -> list[Edit]:
    """Write torch's loss in the place of the body of the port's, or do something to what it returns."""
    function = _function(file, line.source.line)
    names = {node.id for node in ast.walk(ast.parse(str(code))) if isinstance(node, ast.Name)} - MODULES.keys()
    naming = Naming(file)
    if names == {"y"}:
        result = _returned(function)
        text = substituted(naming(str(code)), {"y": file.code(result)})
        return [*naming.imports(), file.exchanged(result, text)]
    taken = next((each for each in _TAKEN if names <= each), None)
    parameters = [parameter.name.value for parameter in function.params.params]
    if taken is None or len(parameters) < 2:
        raise Unfit("the loss takes other arguments than the fix")
    if any(_takes_a_part(node, parameters) for node in [function.body, *_inside(function.body)]):
        raise Unfit("the loss uses a part of what it is given")
    order = ("output", "target") if "output" in taken else ("logits", "labels")
    text = substituted(naming(str(code)), dict(zip(order, parameters, strict=False)))
    if isinstance(function, libcst.Lambda):
        return [*naming.imports(), file.exchanged(function.body, text)]
    return [*naming.imports(), _body(file, function, text)]


def _body(file: SourceFile, function: libcst.FunctionDef, text: str) -> Edit:
    """Replace the body of a function, except its docstring, by returning an expression."""
    statements = list(function.body.body)
    if function.get_docstring() is not None:
        statements = statements[1:]
    if len(statements) == 1 and isinstance(statements[0], libcst.SimpleStatementLine):
        return file.exchanged(_returned(function), text)
    return Edit(file.file, file.range(statements[0])[0], file.range(statements[-1])[1], f"return {text}")


def _function(file: SourceFile, line: int) -> libcst.FunctionDef | libcst.Lambda:
    """Return the function that begins at a line, with its decorators: the only one there that can be the loss."""
    found: list[libcst.FunctionDef | libcst.Lambda] = []
    for node in file.nodes(libcst.FunctionDef):
        first = min([file.line(node), *(file.line(decorator) for decorator in node.decorators)])
        if first <= line <= file.line(node):
            found.append(node)
    # A line may begin both a function and the lambda that it passes on.
    found += [node for node in file.nodes(libcst.Lambda) if file.line(node) == line]
    found = [node for node in found if _takes_two(node.params)]
    if len(found) != 1:
        raise Unfit("several functions begin at the loss's line" if found else "the loss is not a function of the file")
    return found[0]


def _takes_two(parameters: libcst.Parameters) -> bool:
    """Return whether a function can be called with an output and a target, as a method can with itself besides."""
    given = [*parameters.posonly_params, *parameters.params]
    required = [each for each in given if each.default is None]
    return len(required) <= len(("self", "output", "target")) and (
        len(given) > 1 or isinstance(parameters.star_arg, libcst.Param)
    )


def _returned(function: libcst.FunctionDef | libcst.Lambda) -> libcst.BaseExpression:
    if isinstance(function, libcst.Lambda):
        return function.body
    found = [node for node in _inside(function.body) if isinstance(node, libcst.Return)]
    if len(found) != 1 or found[0].value is None:
        raise Unfit("the loss returns at several places")
    return found[0].value


def _takes_a_part(node: libcst.CSTNode, parameters: Sequence[str]) -> bool:
    """Return whether it takes one thing of a parameter that holds several: `output[0]`, or `logits, aux = output`."""
    match node:
        case libcst.Subscript(value=libcst.Name(value=name), slice=[libcst.SubscriptElement(slice=libcst.Index())]):
            return name in parameters
        case libcst.Assign(value=libcst.Name(value=name), targets=[libcst.AssignTarget(target=libcst.Tuple())]):
            return name in parameters
    return False


def _inside(node: libcst.CSTNode) -> Iterator[libcst.CSTNode]:
    """List the nodes of a function's body, without those of the functions in it."""
    for child in node.children:
        if not isinstance(child, libcst.FunctionDef | libcst.Lambda):
            yield child
            yield from _inside(child)
