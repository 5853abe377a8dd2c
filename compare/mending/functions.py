"""Fixes of layers and functions: another setting, another function, a change of what a layer gives or takes."""

import ast
import builtins
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import libcst

from compare.mending.calls import set_keywords
from compare.mending.constants import computed, number
from compare.mending.names import MODULES, Naming
from compare.mending.syntax import Edit, SourceFile, Unfit
from compare.verdict.divergence import Line, Role
from compare.verdict.fix import Code, source

ATTENTION = "jax.nn.dot_product_attention"

REDUCTIONS = ("mean", "sum", "max", "min", "amax", "amin")

_FACTORS = libcst.Multiply | libcst.Divide
_TERMS = libcst.Add | libcst.Subtract
_OPERATORS: dict[type[ast.operator], Any] = {
    ast.Mult: _FACTORS,
    ast.Div: _FACTORS,
    ast.Add: _TERMS,
    ast.Sub: _TERMS,
    ast.Pow: libcst.Power,
}
"""In the place of which operations another of a kind may be put: x / 2 is x * 0.5."""

ONE_ARGUMENT = (
    *("celu", "elu", "gelu", "glu", "hard_sigmoid", "hard_silu", "hard_swish", "hard_tanh", "identity", "leaky_relu"),
    *("log_sigmoid", "log_softmax", "mish", "relu", "relu6", "selu", "sigmoid", "silu", "soft_sign", "softmax"),
    *("softplus", "sparse_plus", "squareplus", "standardize", "swish", "tanh", "abs", "sign", "clip", "where"),
)
"""Functions that people write in the place of one another."""


def set_layer(file: SourceFile, code: Code, line: Line) -> list[Edit]:
    """Give a layer a setting, where it is made."""
    call = file.expression(line.source.span)
    if code.keywords.keys() & MODES and _gives_modes(file, call):
        raise Unfit("the mode is given where the layer is called")
    name = code.call.rpartition(".")[2]
    # Linen makes a layer anew where `setup` assigns it, and a transformed one where it is called.
    if not isinstance(call, libcst.Call) or isinstance(call.func, libcst.Call):
        inside = file.calls_in_statement(call)
        found = [each for each in inside if _named(file.meaning(each.func)) == name]
        if len(found) != 1:
            raise Unfit("no call on the line makes the layer")
        call = found[0]
    made = file.meaning(call.func)
    if isinstance(made, functools.partial) or (made is None and not _is_defined(file, call.func)):
        # No code of the user's is between this call and the class: a partial, or another name of the class, takes the
        # keyword as the class does.
        return set_keywords(file, call, None, written(code.keywords))
    if _named(made) != name:
        raise Unfit(f"the line makes no {name}")
    return set_keywords(file, call, made, written(code.keywords))


MODES = frozenset({"use_running_average", "deterministic"})
"""Settings of a layer that a call of it, or of its model, may give as well."""


def _gives_modes(file: SourceFile, made: libcst.BaseExpression) -> bool:
    """Tell whether another call in the file gives a mode: then that counts, and not what the layer is made with."""
    inside = {id(node) for node in file.calls_in_statement(made)}
    others = [call for call in file.nodes(libcst.Call) if id(call) not in inside]
    return any(each.keyword is not None and each.keyword.value in MODES for call in others for each in call.args)


def _is_defined(file: SourceFile, function: libcst.BaseExpression) -> bool:
    """Return whether the file defines a function of a name, which may take no more than it does."""
    name = function.value if isinstance(function, libcst.Name) else ""
    return any(each.name.value == name for each in file.nodes(libcst.FunctionDef))


def exchange_function(file: SourceFile, code: Code, lines: Sequence[Line]) -> list[Edit]:
    """Put a function of one argument, or its setting, in the place of the one that computes what differs."""
    if code.around == "{}(x)":  # it makes the layer and calls it
        raise Unfit("the port lacks the layer: make it where the model makes its layers, and call it there")
    calls = [call for call in expressions(file, lines) if isinstance(call, libcst.Call)]
    same = [call for call in calls if is_function(file.meaning(call.func), code.call)]
    if code.call == ATTENTION and not same:  # written out by hand
        return _attention(file, code, lines, calls)
    if code.call in _STATISTICS and not same:  # a method of an array
        same = [call for call in calls if _attribute(call) in ("std", "var") and file.meaning(call.func) is None]
    # In the order of how sure it is that this call is meant: the function that only lacks a setting, the one that was
    # proved to be there, one of those that people exchange, and one whose meaning is not known, such as `self.act(x)`.
    # If another function was proved to be there, a call of one is a part of it: x * sigmoid(x) computes silu.
    others = [call for call in calls if _named(file.meaning(call.func)) in ONE_ARGUMENT]
    unknown = [call for call in calls if len(call.args) == 1 and _is_unknown(file, call)]
    wrong = [call for call in calls if code.instead and is_function(file.meaning(call.func), code.instead)]
    only_other = None if code.instead else _only(others)
    call = _only(same) or _only(wrong) or only_other or (None if others else _only(unknown))
    if call is None:
        raise Unfit("which call it changes is not known")
    if call in same and code.around == "{}":
        return set_keywords(file, call, file.meaning(call.func), written(code.keywords))
    # The fix says another function without its arguments: `f(...)` in the place of g(x, y) may not be f(x, y).
    if code.arguments == ("...",):
        raise Unfit("another function may take other arguments")
    return put(file, call, str(code), {"x": call.args[0].value})


def _is_unknown(file: SourceFile, call: libcst.Call) -> bool:
    """Tell whether a call may be that of any function, as `self.act(x)`, and is no method of an array."""
    import jax

    return file.meaning(call.func) is None and not hasattr(jax.Array, _attribute(call) or " ")


_STATISTICS = ("jnp.var", "jnp.std")


def _attribute(call: libcst.Call) -> str:
    return call.func.attr.value if isinstance(call.func, libcst.Attribute) else ""


_CAUSAL = "jnp.where(jnp.tril(jnp.ones(x.shape[-2:], bool)), x, -jnp.inf)"


def _attention(file: SourceFile, code: Code, lines: Sequence[Line], calls: Sequence[libcst.Call]) -> list[Edit]:
    """Change an attention that is no call of a function: its factor, or what its softmax is given."""
    if "scale" in code.keywords:
        factor = Code(around=f"x * {source(code.keywords['scale'])}", wrong=code.wrong)
        return exchange_constant(file, factor, lines)
    softmax = _only([call for call in calls if _named(file.meaning(call.func)) == "softmax" and call.args])
    if softmax is None or code.keywords != {"is_causal": True}:
        raise Unfit("which part of the attention it changes is not known")
    scores = softmax.args[0].value
    return put(file, scores, _CAUSAL, {"x": scores})


def exchange_reduction(file: SourceFile, code: Code, lines: Sequence[Line]) -> list[Edit]:
    """Put another reduction, such as the mean, in the place of one, with the same axes."""
    found = [
        (call, call.func.attr)
        for call in expressions(file, lines)
        if isinstance(call, libcst.Call) and isinstance(call.func, libcst.Attribute)
        if call.func.attr.value in REDUCTIONS
    ]
    if len(found) != 1:
        raise Unfit("which reduction it changes is not known")
    call, name = found[0]
    if code.keywords and not _has_axis(file, call):
        raise Unfit("the JAX side reduces all axes at once, torch some of them")
    return [file.exchanged(name, code.call.removeprefix("jnp."))]


def _has_axis(file: SourceFile, call: libcst.Call) -> bool:
    """Return whether a reduction, a function or a method of an array, is given an axis."""
    named = any(each.keyword is not None and each.keyword.value == "axis" for each in call.args)
    array = file.meaning(call.func) is not None  # the first argument of a function
    return named or sum(each.keyword is None for each in call.args) > array


def take_element(file: SourceFile, code: Code, lines: Sequence[Line]) -> list[Edit]:
    """Put the choice of one element in the place of a reduction over one axis."""
    found = [
        call
        for call in expressions(file, lines)
        if isinstance(call, libcst.Call) and isinstance(call.func, libcst.Attribute)
        if call.func.attr.value in REDUCTIONS
    ]
    if len(found) != 1:
        raise Unfit("which reduction it changes is not known")
    values = [each.value for each in found[0].args]
    if file.meaning(found[0].func) is None and isinstance(found[0].func, libcst.Attribute):  # a method of an array
        values.insert(0, found[0].func.value)
    if len(values) != 2:
        raise Unfit("the axis of the reduction is not known")
    array, axis = (file.code(each) for each in values)
    naming = Naming(file)
    taken = naming(f"jnp.take(x, {code.arguments[1]}, axis=y)")
    return [*naming.imports(), file.exchanged(found[0], substituted(taken, {"x": array, "y": axis}))]


def exchange_constant(file: SourceFile, code: Code, lines: Sequence[Line]) -> list[Edit]:
    """Put another number into a sum, product or power of the user's."""
    tree = ast.parse(str(code), mode="eval").body
    if not isinstance(tree, ast.BinOp):
        raise Unfit("the fix is not a sum, a product or a power")
    behind = isinstance(tree.left, ast.Name)
    now = None if code.wrong is None else computed(type(tree.op), code.wrong, behind=behind)
    found = [
        (node, operand)
        for node in expressions(file, lines)
        if isinstance(node, libcst.BinaryOperation) and isinstance(node.operator, _OPERATORS[type(tree.op)])
        if (operand := _other_than_number(file, node, now)) is not None
    ]
    if len(found) != 1:
        raise Unfit("which constant it changes is not known")
    node, operand = found[0]
    return put(file, node, str(code), {"x": operand})


def change_result(file: SourceFile, code: Code, line: Line) -> list[Edit]:
    """Do something to what a layer gives, or to what it takes, where it is called."""
    call = file.expression(line.source.span)
    if not isinstance(call, libcst.Call):
        raise Unfit("no call of the layer is on the line")
    if line.role == Role.CALLED:
        return put(file, call, str(code), {"y": call})
    if line.role != Role.GIVEN or not call.args or call.args[0].star:
        raise Unfit("which argument it changes is not known")
    if isinstance(call.func, libcst.Attribute) and call.func.attr.value in ("update", "apply_gradients"):
        raise Unfit("the call takes the gradients of all parameters, and not this one alone")
    return put(file, call.args[0].value, str(code), {"y": call.args[0].value})


def change_computed(file: SourceFile, code: Code, lines: Sequence[Line]) -> list[Edit]:
    """Do something to what is computed last: its value is what differs."""
    found = expressions(file, lines[-1:])
    if not found:
        raise Unfit("the expression that computes the difference is not known")
    if file.above(found[0], libcst.For) or file.above(found[0], libcst.While):
        raise Unfit("the expression that computes the difference is computed several times, in a loop")
    return put(file, found[0], str(code), {"y": found[0]})


def put(
    file: SourceFile, node: libcst.BaseExpression, code: str, given: Mapping[str, libcst.BaseExpression]
) -> list[Edit]:
    """Put a fix in the place of an expression, with the user's expressions for its names."""
    nodes = list(ast.walk(ast.parse(code, mode="eval")))
    names = {node.id for node in nodes if isinstance(node, ast.Name)} - {
        node.arg for node in nodes if isinstance(node, ast.arg)
    }
    if unknown := sorted(names - given.keys() - MODULES.keys() - vars(builtins).keys()):
        raise Unfit(f"what {' and '.join(unknown)} of the fix is called in your code is not known")
    # The fix is written with `jnp` and `nnx`; the file may import these under other names, or not at all.
    naming = Naming(file)
    text = substituted(naming(code), {name: file.code(value) for name, value in given.items()})
    parent = file.parent(node)
    tight = libcst.BinaryOperation | libcst.UnaryOperation | libcst.Attribute | libcst.Subscript
    binary = not isinstance(libcst.parse_expression(text), libcst.Call | libcst.Name | libcst.Attribute)
    if binary and isinstance(parent, tight) and not node.lpar:
        text = f"({text})"
    return [*naming.imports(), file.exchanged(node, text)]


def substituted(code: str, given: Mapping[str, str]) -> str:
    """Put the user's expressions in the place of the names of a fix; one that is used often is computed once."""
    tree = ast.parse(code, mode="eval").body
    places = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id in given]
    for name in given:
        used = [node for node in places if node.id == name]
        # `jnp.where(mask, x, -x)` with a call for x would make the call twice, and draw random numbers twice.
        if len(used) > 1 and not given[name].isidentifier():
            return f"(lambda {name}: {code})({given[name]})"
    alone = isinstance(tree, ast.Name)
    # From the end of the line, so that the columns before a change stay what they were.
    for node in sorted(places, key=lambda each: -each.col_offset):
        text = given[node.id]
        within = libcst.parse_expression(text.strip())
        simple = within.lpar or isinstance(within, _SIMPLE)
        # Between parentheses or commas nothing binds tighter, and the user's own layout can stay.
        is_argument = any(node in call.args for call in ast.walk(tree) if isinstance(call, ast.Call))
        text = text if simple or is_argument or alone else f"({text})"
        code = code[: node.col_offset] + text + code[node.end_col_offset :]
    return code


_SIMPLE = (libcst.Name, libcst.Call, libcst.Attribute, libcst.Subscript, libcst.Integer, libcst.Float)
"""What needs no parentheses around it."""


def written(keywords: Mapping[str, Any]) -> dict[str, str]:
    """Write the values of keyword arguments as source."""
    return {name: source(value) for name, value in keywords.items()}


def expressions(file: SourceFile, lines: Iterable[Line]) -> list[libcst.BaseExpression]:
    """List the expressions of some lines that are in a file."""
    found = []
    for line in lines:
        if line.source.file == file.file:
            try:
                found.append(file.expression(line.source.span))
            except Unfit:  # such as a subscript with a slice, which is no expression by itself
                continue
    return list(dict.fromkeys(found))


def is_function(function: Any, name: str) -> bool:
    """Return whether a function is the one that a fix calls, under whatever name."""
    import importlib

    root, *rest = name.split(".")
    if root not in MODULES:
        return False
    wanted: Any = importlib.import_module(MODULES[root])
    for part in rest:
        wanted = getattr(wanted, part, None)
    return function is not None and function is wanted


def _named(function: Any) -> str:
    return getattr(function, "__name__", "")


def _only(calls: Sequence[libcst.Call]) -> libcst.Call | None:
    return calls[0] if len(calls) == 1 else None


def _other_than_number(
    file: SourceFile, node: libcst.BinaryOperation, now: float | None
) -> libcst.BaseExpression | None:
    """Return the side that is no number, if the other one is; `now` is what it computes with the wrong one."""
    # Two numbers are a constant of their own, and two expressions have none that could be meant.
    left, right = number(file, node.left), number(file, node.right)
    if left is not None and right is None:
        constant, operand = left, node.right
    elif right is not None and left is None:
        constant, operand = right, node.left
    else:
        return None
    if now is None:
        return operand
    result = computed(type(node.operator), constant, behind=operand is node.left)
    return operand if result is not None and math.isclose(result, now, rel_tol=1e-6) else None
