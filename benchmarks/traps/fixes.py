"""Puts a printed fix into the wrong half of a trap, as a user would.

The names in the code of a fix say what it stands for: an expression of `x` is a function of what goes in, one of `y` a
function of what the JAX side gives there, one of `output` and `target`, or of `logits` and `labels`, a loss. A call
with `...` sets keyword arguments: a trap that has these settings takes them.
"""

import ast
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import compare
from compare.verdict.fix import Code

from .trap import Pair, Trap

MODULES = {"jax": jax, "jnp": jnp, "np": np, "optax": optax, "nnx": nnx}

LOSS = ({"output", "target"}, {"logits", "labels"})


def fixed(trap: Trap, cause: compare.Cause) -> Pair | None:
    """Build the wrong half with all that a cause's fix says; None if the fix is no code that can be put in."""
    known = {*trap.wrong, *trap.right}
    settings = {name: value for name, value in _keywords(cause) if name in known}
    # A setting that is a function takes the function that a fix calls.
    functions = [name for name, value in trap.wrong.items() if callable(value)]
    for code in cause.code:
        if code.call and code.arguments == ("...",) and not code.keywords and len(functions) == 1:
            settings[functions[0]] = eval(code.call, dict(MODULES))
    if settings:
        return trap.build(**{**trap.wrong, **settings})
    pair: Pair | None = trap.build(**trap.wrong)
    for code in cause.code:
        pair = pair and _written(trap, pair, code)
    return pair if cause.code else None


def _keywords(cause: compare.Cause) -> Iterator[tuple[str, Any]]:
    """Give the keyword arguments of a fix: of its values, or of calls with `...` in its text."""
    for code in cause.code:
        yield from code.keywords.items()
    if cause.code:
        return
    for part in cause.fix.split("; "):
        try:
            tree = ast.parse(part, mode="eval")
        except SyntaxError:
            continue
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            if any(isinstance(each, ast.Constant) and each.value is ... for each in call.args):
                for keyword in call.keywords:
                    if keyword.arg and isinstance(keyword.value, ast.Constant):
                        yield keyword.arg, keyword.value.value


def _written(trap: Trap, pair: Pair, code: Code) -> Pair | None:
    """Put an expression in the place of the layer or of the loss."""
    if code.call == "compare.copy_weights":
        compare.copy_weights(pair.torch.model, pair.jax.model)
        return pair
    names, expression = names_of(str(code)), compile(str(code), "fix", "eval")

    def value(**given: Any) -> Any:
        return eval(expression, dict(MODULES), given)

    port: Any = pair.jax.model
    loss, at_loss = pair.jax.loss, trap.place[0] == "loss"
    if not trap.whole or str(code) == "x":  # a call is left out of the layer, and not the layer
        return None
    if names and any(names <= each for each in LOSS):
        changed = lambda o, t: value(output=o, target=t, logits=o, labels=t)  # noqa: E731
        return pair._replace(jax=dataclasses.replace(pair.jax, loss=changed))
    if names == {"y"} and at_loss:
        return pair._replace(jax=dataclasses.replace(pair.jax, loss=lambda o, t: value(y=loss(o, t))))
    if names == {"y"}:
        where = "front" if trap.place[1] == "*front*" else "layer"
        # As data, since a layer that is a plain function was static until now.
        setattr(port, where, nnx.data(Behind(getattr(port, where), lambda y: value(y=y))))
        return pair
    if names == {"x"}:
        port.layer = lambda x: value(x=x)
        return pair
    return None


class Behind(nnx.Module):
    """A layer, and what a fix makes of its output."""

    def __init__(self, layer: Any, change: Callable[[Any], Any]) -> None:
        self.layer, self.change = layer, change

    def __call__(self, x: Any) -> Any:
        return self.change(self.layer(x))


def names_of(code: str) -> set[str]:
    """Name what an expression takes."""
    found = {node.id for node in ast.walk(ast.parse(code, mode="eval")) if isinstance(node, ast.Name)}
    return found - MODULES.keys()
