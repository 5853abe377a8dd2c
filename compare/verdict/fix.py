"""What to write on the JAX side, as values: the text is rendered from them, and a program can apply them."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compare.step.observation import Port


@dataclass(frozen=True)
class Code:
    """A Python expression: one call with the arguments that matter, and the expression around it.

    >>> str(Code("nnx.LayerNorm", keywords={"epsilon": 1e-5}))
    'nnx.LayerNorm(..., epsilon=1e-05)'
    >>> str(Code("jax.nn.softplus", ("2 * x",), around="{} / 2"))
    'jax.nn.softplus(2 * x) / 2'
    """

    call: str = ""
    """The function or class as the program names it: "nnx.LayerNorm", "jax.nn.gelu". "" if nothing is called."""
    arguments: tuple[str, ...] = ("...",)
    """Positional arguments as source; "..." stands for those that the program has already."""
    keywords: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments as values."""
    around: str = "{}"
    """An expression with "{}" in the place of the call: "{} / 0.5"."""
    instead: str = ""
    """The function that the JAX side calls instead, if it is known: "jax.nn.relu"."""
    whole: bool = True
    """Whether it replaces everything that the JAX side has at the place. If it replaces only a part, there is no
    patch: only the numbers show which part it is, and the user's code may write it in many ways."""
    before: tuple[str, ...] = ()
    """The expression that the JAX side has instead, with the same names: one of these, if it is known."""
    numbers: tuple[tuple[float, float], ...] = ()
    """The numbers in the JAX side's expression that are wrong, each with what it must be."""
    wrong: float | None = None
    """The number that the JAX side has in the place of the one in a sum, product or power, if it is known."""
    values: Mapping[str, tuple[Port, ...]] = field(default_factory=dict)
    """The modules' inputs and outputs, on the torch side, that names in it stand for."""
    words: str = ""
    """How it is printed, if the expression alone is not clear enough."""

    @property
    def takes_away(self) -> bool:
        """Whether it removes an operation of the JAX side and writes nothing in its place: "x" for "jnp.tanh(x)"."""
        return not self.call and self.around.isidentifier() and bool(self.before)

    def __str__(self) -> str:
        """Render it as source."""
        keywords = (f"{name}={source(value)}" for name, value in self.keywords.items())
        called = f"{self.call}({', '.join((*self.arguments, *keywords))})" if self.call else ""
        return self.around.replace("{}", called)


def written(code: Code) -> str:
    """Render code as text, with an explanation of `y`."""
    if code.words:
        return code.words
    result = any(isinstance(node, ast.Name) and node.id == "y" for node in ast.walk(ast.parse(str(code))))
    if code.call in ("jnp.mean", "jnp.sum") and "axis" in code.keywords:
        which = "this axis" if isinstance(code.keywords["axis"], int) else "these axes"
        return f"{code}, in torch's layout: reduce {which} alone, and the others as torch does"
    return f"{code}, where y is the JAX side's value there" if result else str(code)


def of_a_term(code: Code) -> str:
    """Render the code of a loss that is one term of a larger one, or takes other arguments than it."""
    return f"{code}, instead of this term alone: the names are the term's inputs, and the rest of the loss stays"


def source(value: Any) -> str:
    """Render a value as source, a number in as few digits as give it back."""
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else repr(value)
