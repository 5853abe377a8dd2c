"""Patches for causes of a training step: a number where it is written, gradients where an optimizer is given them."""

from pathlib import Path

import pytest
from test_mending import HEAD, File

from compare.mending.patch import patch_of
from compare.mending.syntax import Unfit, applied
from compare.verdict.divergence import Role
from compare.verdict.fix import Code

DECAY = Code("optax.incremental_update", ("new", "old"), {"step_size": 0.1}, numbers=((0.99, 0.9), (0.01, 0.1)))
HALVED = Code(around="jax.tree.map(lambda leaf: leaf / 2, gradients)")
CLIPPED = Code("optax.chain", ("optax.clip_by_global_norm(0.5)", "optax.adam(...)"))


def after(folder: Path, text: str, expression: str, code: Code, role: Role = Role.COMPUTED) -> str | None:
    file = File(folder, HEAD + text)
    return file.after(code, file.line(role, expression))


@pytest.mark.parametrize(
    ("before", "expression", "mended"),
    [
        ("def f(a, b):\n    return 0.99 * a + 0.01 * b\n", "0.99 * a + 0.01 * b", "0.9 * a + 0.1 * b"),
        (
            "def f(a, b):\n    return 0.99 * a + (1 - 0.99) * b\n",
            "0.99 * a + (1 - 0.99) * b",
            "0.9 * a + (1 - 0.9) * b",
        ),
        ("def f(a, b):\n    return a + (b - a) * 0.01\n", "a + (b - a) * 0.01", "a + (b - a) * 0.1"),
        (
            "def f(a, b):\n    d = 0.99\n    return d * a + (1 - d) * b\n",
            "d * a + (1 - d) * b",
            "def f(a, b):\n    d = 0.9\n    return d * a + (1 - d) * b\n",
        ),
        (
            "def f(a, b, tau):\n    return (1 - tau) * a + tau * b\n\n\nc = f(1, 2, 0.01)\n",
            "(1 - tau) * a + tau * b",
            "c = f(1, 2, 0.1)\n",
        ),
        (
            "GAMMA, TAU = 0.5, 0.01\n\n\ndef f(a, b):\n    return (1 - TAU) * a + TAU * b\n",
            "(1 - TAU) * a + TAU * b",
            "GAMMA, TAU = 0.5, 0.1\n",
        ),
        (
            "RATE = 0.01\nOTHER = RATE\n\n\ndef f(a, b):\n    return (1 - RATE) * a + RATE * b\n",
            "(1 - RATE) * a + RATE * b",
            "RATE = 0.01\nOTHER = RATE\n\n\ndef f(a, b):\n    return (1 - 0.1) * a + 0.1 * b\n",
        ),
        (
            "def f(a, b):\n    return optax.incremental_update(b, a, step_size=1e-2)\n",
            "optax.incremental_update(b, a, step_size=1e-2)",
            "optax.incremental_update(b, a, step_size=0.1)",
        ),
    ],
)
def test_a_number_is_exchanged_where_it_is_written(before: str, expression: str, mended: str, tmp_path: Path) -> None:
    assert mended in (after(tmp_path, before, expression, DECAY) or "")


@pytest.mark.parametrize(
    ("before", "expression"),
    [
        ("def f(a, b, d):\n    return d * a + (1 - d) * b\n", "d * a + (1 - d) * b"),  # called from anywhere
        ("def f(a, b):\n    d = 0.99\n    d = d * 1\n    return d * a\n", "d * a"),  # assigned twice
        ("def f(a, b):\n    return 0.98 * a + 0.02 * b\n", "0.98 * a + 0.02 * b"),  # other numbers
        (
            "def f(a, b, d):\n    return d * a\n\n\nc = f(1, 2, 0.99), f(1, 2, 0.98)\n",
            "d * a",
        ),  # called with two
    ],
)
def test_a_number_that_is_not_known_stays(before: str, expression: str, tmp_path: Path) -> None:
    assert after(tmp_path, before, expression, DECAY) is None


def test_two_equal_numbers_are_not_told_apart(tmp_path: Path) -> None:
    half = Code("optax.incremental_update", ("new", "old"), {"step_size": 0.1}, numbers=((0.5, 0.9), (0.5, 0.1)))
    text = "def f(a, b):\n    return 0.5 * a + 0.5 * b\n"
    assert after(tmp_path, text, "0.5 * a + 0.5 * b", half) is None


@pytest.mark.parametrize(
    ("call", "mended"),
    [
        ("o.update(m, g)", "o.update(m, jax.tree.map(lambda leaf: leaf / 2, g))"),
        ("o.update(m, grads=g)", "o.update(m, grads=jax.tree.map(lambda leaf: leaf / 2, g))"),
        ("s.apply_gradients(grads=g + 1)", "s.apply_gradients(grads=jax.tree.map(lambda leaf: leaf / 2, g + 1))"),
        ("s.apply_gradients(**g)", None),
        ("o.update(*g)", None),
    ],
)
def test_gradients_are_changed_where_an_optimizer_gets_them(call: str, mended: str | None, tmp_path: Path) -> None:
    found = after(tmp_path, f"def f(o, s, m, g):\n    return {call}\n", call, HALVED, Role.GIVEN)
    assert found == (mended and f"def f(o, s, m, g):\n    return {mended}\n")


@pytest.mark.parametrize(
    ("clip", "mended"),
    [
        ("clip = optax.clip(1.0)\n    ", "optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1))"),
        ("clip = optax.scale(2.0)\n    ", "optax.chain(clip, optax.clip_by_global_norm(0.5), optax.adam(0.1))"),
        ("clip = optax.clip(1.0)\n    clip = optax.clip(2.0)\n    ", None),
    ],
)
def test_a_transformation_by_its_name_is_exchanged_and_not_doubled(
    clip: str, mended: str | None, tmp_path: Path
) -> None:
    call = "optax.chain(clip, optax.adam(0.1))"
    found = after(tmp_path, f"def make():\n    {clip}return {call}\n", call, CLIPPED, Role.MADE)
    assert found == (mended and f"def make():\n    {clip}return {mended}\n")


def test_an_expression_in_parentheses_is_found(tmp_path: Path) -> None:
    text = "def f(x, y):\n    return y * (x - 0.2)\n"
    file = File(tmp_path, HEAD + text)
    lines = [file.line(Role.COMPUTED, "x - 0.2")]
    found = applied(file.text, list(patch_of([Code(around="x - 0.3")], lines).edits))
    assert found.endswith("return y * (x - 0.3)\n")


def test_a_constant_that_two_expressions_have_is_not_known(tmp_path: Path) -> None:
    file = File(tmp_path, HEAD + "def f(x, y):\n    return (x - 0.2) * (y - 0.2)\n")
    lines = [file.line(Role.COMPUTED, each) for each in ("x - 0.2", "y - 0.2")]
    with pytest.raises(Unfit):
        patch_of([Code(around="x - 0.3")], lines)


@pytest.mark.parametrize(
    ("call", "mended"),
    [
        ("x.std()", "x.std(ddof=1)"),
        ("x.std(0, keepdims=True)", "x.std(0, keepdims=True, ddof=1)"),
        ("jnp.std(x, ddof=0)", "jnp.std(x, ddof=1)"),
        ("x.mean()", None),
    ],
)
def test_a_standard_deviation_is_a_method_too(call: str, mended: str | None, tmp_path: Path) -> None:
    unbiased = Code("jnp.std", keywords={"ddof": 1})
    found = after(tmp_path, f"def f(x):\n    return x / {call}\n", call, unbiased)
    assert found == (mended and f"def f(x):\n    return x / {mended}\n")
