"""Fixes of an optimizer: settings of its call, another function, and transformations before it."""

import inspect
from collections.abc import Sequence
from typing import Any

import libcst

from compare.mending.calls import accepts, left_out, parameters, set_keywords
from compare.mending.constants import value_of
from compare.mending.names import Naming
from compare.mending.syntax import Edit, SourceFile, Unfit
from compare.verdict.divergence import Line
from compare.verdict.fix import Code

CHAIN = "optax.chain"


def mend_optimizer(file: SourceFile, code: Code, line: Line) -> list[Edit]:
    """Change the call that makes the optimizer, inside a chain of transformations too."""
    made = file.expression(line.source.span)
    call = _optimizer(file, made)
    naming = Naming(file)
    wanted = [str(code)] if code.call != CHAIN else list(code.arguments)
    *before, last = [libcst.parse_expression(text) for text in wanted]
    taken_over = [name for each in before for name in _TAKEN_OVER.get(_kind_of(each), ())]
    edits = _changed(file, call, last, naming, taken_over)
    place = _place(file, made, call)
    is_in_chain = isinstance(made, libcst.Call) and _name(file, made.func) == "chain"
    kept = [each.value for each in made.args if each.value is not place] if isinstance(made, libcst.Call) else []
    kept = kept if is_in_chain else []
    added = []
    for each in before:  # what does the same in another way goes
        text = naming(_NEW.code_for_node(each))
        alike = [old for old in kept if _kind(file, old) == _kind_of(each)]
        if len(alike) == 1:
            if file.range(alike[0]) > file.range(place):
                raise Unfit("the transformations of the chain have another order")
            edits.append(file.exchanged(alike[0], text))
            kept.remove(alike[0])
        else:
            added.append(text)
    start, end = file.range(place)
    if added and is_in_chain:
        edits.append(Edit(file.file, start, start, "".join(f"{text}, " for text in added)))
    elif added:
        edits.append(Edit(file.file, start, start, f"{naming(CHAIN)}({''.join(f'{text}, ' for text in added)}"))
        edits.append(Edit(file.file, end, end, ")"))
    return [*naming.imports(), *edits]


_NEW = libcst.Module([])
"""Writes what is in no file yet."""


def _place(file: SourceFile, made: libcst.BaseExpression, call: libcst.Call) -> libcst.BaseExpression:
    """Return where an optimizer is in a chain: its call, or the variable that it was assigned to."""
    parts = [each.value for each in made.args] if isinstance(made, libcst.Call) else []
    named = [each for each in parts if isinstance(each, libcst.Name) and _assigned(file, made, each.value) is call]
    return named[0] if named else call


_KINDS = {
    "clip_by_global_norm": "clipping",
    "clip": "clipping",
    "adaptive_grad_clip": "clipping",
    "stateless": "clipping",
    "add_decayed_weights": "decay",
    "scale": "scale",
}
"""Which transformations do the same thing in another way."""


_TAKEN_OVER = {"decay": ("weight_decay",)}
"""Which arguments of an optimizer say what a transformation before it does."""


def _kind(file: SourceFile, node: libcst.BaseExpression) -> str | None:
    """Return what a transformation of the user's does, None if it is none of `_KINDS`: a helper's name says it too.

    Raises:
        Unfit: If it is a variable whose value is not known, or an expression such as a choice between two.

    """
    if isinstance(node, libcst.Name):
        value = value_of(file, node)
        if value is None:
            raise Unfit(f"what {node.value} in the chain does is not known")
        return _kind(file, value)
    if not isinstance(node, libcst.Call):
        raise Unfit(f"what {file.code(node)} in the chain does is not known")
    name = _name(file, node.func) or file.code(node.func)
    return _KINDS.get(name, "clipping" if "clip" in name else None)


def _kind_of(node: libcst.BaseExpression) -> str:
    match node:
        case libcst.Call(func=libcst.Attribute(attr=libcst.Name(value=name))):
            return _KINDS.get(name, "")
    return ""


def _optimizer(file: SourceFile, made: libcst.BaseExpression) -> libcst.Call:
    """Return the call of one of optax's optimizers that makes the optimizer, or a part of it."""
    match made:
        case libcst.Call() if _name(file, made.func) == "chain":
            parts = [each.value for each in made.args]
            calls = [each for each in parts if isinstance(each, libcst.Call) and _takes_rate(file, each)]
            named = [each for each in parts if isinstance(each, libcst.Name)]
            calls += [call for each in named if (call := _assigned(file, made, each.value))]
            if len(calls) == 1:
                return calls[0]
        case libcst.Call() if _takes_rate(file, made):
            return made
    raise Unfit("which call makes the optimizer is not known")


def _assigned(file: SourceFile, near: libcst.CSTNode, name: str) -> libcst.Call | None:
    """Return the optimizer's call that is the value of a variable, if it is assigned once in the same function."""
    function = file.above(near, libcst.FunctionDef)
    found = []
    for node in file.nodes(libcst.Assign):
        if file.above(node, libcst.FunctionDef) is not function:
            continue
        match node:
            case libcst.Assign(targets=[libcst.AssignTarget(target=libcst.Name(value=target))], value=libcst.Call()):
                if target == name:
                    found.append(node.value)
    calls = [call for call in found if isinstance(call, libcst.Call) and _takes_rate(file, call)]
    return calls[0] if len(found) == len(calls) == 1 else None


def _takes_rate(file: SourceFile, call: libcst.Call) -> bool:
    return accepts(_plain(file.meaning(call.func)), "learning_rate")


def _name(file: SourceFile, function: libcst.BaseExpression) -> str:
    return getattr(_plain(file.meaning(function)), "__name__", "")


def _plain(function: Any) -> Any:
    return None if function is None else inspect.unwrap(function)


def _changed(
    file: SourceFile, call: libcst.Call, wanted: libcst.BaseExpression, naming: Naming, taken_over: Sequence[str]
) -> list[Edit]:
    """Change the user's call to what a fix says of it: `optax.adamw(..., weight_decay=0.01)`.

    Args:
        file: The file that the call is in.
        call: The call.
        wanted: What the fix has in its place.
        naming: Of the file.
        taken_over: Arguments that go, since something else in the fix does the same.

    """
    if not isinstance(wanted, libcst.Call):
        raise Unfit("the fix is not a call")
    values = {each.keyword.value: naming(_NEW.code_for_node(each.value)) for each in wanted.args if each.keyword}
    if any(each.keyword is None and not isinstance(each.value, libcst.Ellipsis) for each in wanted.args):
        raise Unfit("the fix has arguments by position, for which your call has others")
    old, new = _plain(file.meaning(call.func)), _function_of(wanted)
    if new is None or new is old:
        return set_keywords(file, call, old, values)
    if any(accepts(new, name) for name in taken_over):
        taken_over = ()
    _check_arguments(call, old, new, taken_over)
    function = file.exchanged(call.func, naming(_NEW.code_for_node(wanted.func)))
    return [function, *left_out(file, call, old, taken_over), *set_keywords(file, call, new, values)]


def _function_of(wanted: libcst.Call) -> Any:
    """Return the function of optax that a fix calls."""
    import optax

    at: Any = optax
    for name in _NEW.code_for_node(wanted.func).split(".")[1:]:
        at = getattr(at, name, None)
    return _plain(at)


def _check_arguments(call: libcst.Call, old: Any, new: Any, taken_over: Sequence[str]) -> None:
    """Raise Unfit where the arguments of one function mean something else to another."""
    order, other = parameters(old), parameters(new)
    for number, argument in enumerate(call.args):
        name = argument.keyword.value if argument.keyword else (order[number : number + 1] or [""])[0]
        if name in taken_over:
            continue
        if argument.star or not accepts(new, name) or (not argument.keyword and other[number : number + 1] != [name]):
            raise Unfit(f"the other optimizer takes no {name}")
