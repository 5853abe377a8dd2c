"""Fixes as edits of a user's file: where they go, how the file writes them, and when there is no patch."""

import dataclasses
import importlib.util
import itertools
import sys
from pathlib import Path
from typing import Any

import pytest

from compare.mending.patch import patch_of, together
from compare.mending.syntax import Unfit, applied
from compare.report.grouping import grouped
from compare.step.places import Source
from compare.verdict.divergence import Cause, Divergence, Line, Role
from compare.verdict.fix import Code

HEAD = """\
import jax
import jax.numpy as jnp
import optax
from flax import nnx

"""
_NUMBERS = itertools.count()


class File:
    """A file of a user's that is imported, for its names to mean something."""

    def __init__(self, folder: Path, text: str) -> None:
        self.path, self.text = folder / f"mended_{next(_NUMBERS)}.py", text
        self.path.write_text(text, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(self.path.stem, self.path)
        assert spec
        assert spec.loader
        module = sys.modules[self.path.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)

    def line(self, role: Role, expression: str, side: str = "jax") -> Line:
        """Give the place of an expression, which stands once in the file."""
        start = self.text.index(expression)
        assert self.text.count(expression) == 1
        before, within = self.text[:start], self.text[: start + len(expression)]
        first, last = before.count("\n") + 1, within.count("\n") + 1
        columns = [len(part.rpartition("\n")[2].encode()) for part in (before, within)]
        text = self.text.splitlines()[first - 1].strip()
        return Line(side, role, Source(str(self.path), first, text, (first, last, columns[0], columns[1])))

    def after(self, code: Code, *lines: Line) -> str | None:
        """Give the file's last lines with a fix in it, without the imports."""
        try:
            return applied(self.text, list(patch_of([code], lines).edits)).removeprefix(HEAD)
        except Unfit:
            return None


def difference(number: int, cause: Cause | None, line: Line) -> Divergence:
    """Give a finding, by its number in order of computation."""
    place = f"place {number}"
    return Divergence(0, "forward", place, place, 0.1, 1e-7, 2e-16, cause, lines=(line,), number=number)


@pytest.fixture
def mend(tmp_path: Path) -> Any:
    """Give a function: a file's text below its imports, a role, an expression and a fix, and what comes out."""

    def mended(text: str, role: Role, expression: str, code: Code) -> str | None:
        file = File(tmp_path, HEAD + text)
        return file.after(code, file.line(role, expression))

    return mended


LAYER = Code("nnx.LayerNorm", keywords={"epsilon": 1e-5})
EXACT = Code("jax.nn.gelu", ("x",), {"approximate": False})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("nnx.LayerNorm(8, rngs=rngs)", "nnx.LayerNorm(8, epsilon=1e-05, rngs=rngs)"),
        ("nnx.LayerNorm(8, epsilon=1e-6, rngs=rngs)", "nnx.LayerNorm(8, epsilon=1e-05, rngs=rngs)"),
        ("nnx.LayerNorm(8, rngs=rngs, epsilon=EPS)", "nnx.LayerNorm(8, rngs=rngs, epsilon=1e-05)"),
        ("nnx.LayerNorm(  8,rngs = rngs )", "nnx.LayerNorm(  8,epsilon=1e-05,rngs = rngs )"),
        ("nnx.LayerNorm((8))", "nnx.LayerNorm((8), epsilon=1e-05)"),
        ("nnx.LayerNorm(num_features=(4, 4))", "nnx.LayerNorm(num_features=(4, 4), epsilon=1e-05)"),
        (
            "nnx.LayerNorm(\n        8,\n        use_bias=False,\n        rngs=rngs,\n    )",
            "nnx.LayerNorm(\n        8,\n        use_bias=False,\n        epsilon=1e-05,\n        rngs=rngs,\n    )",
        ),
    ],
)
def test_a_setting_of_a_layer(before: str, after: str, mend: Any) -> None:
    text = "EPS = 1e-6\n\n\ndef make(rngs):\n    return {}  # é, untouched\n"
    assert mend(text.format(before), Role.MADE, before, LAYER) == text.format(after)


def test_a_setting_that_is_given_by_position(mend: Any) -> None:
    text = "def make(rngs):\n    return nnx.Dropout({}, rngs=rngs)\n"
    made = "nnx.Dropout(0.5, rngs=rngs)"
    assert mend(text.format(0.5), Role.MADE, made, Code("nnx.Dropout", keywords={"rate": 0.1})) == text.format(0.1)


def test_a_line_that_makes_many_layers_is_one_edit(tmp_path: Path) -> None:
    file = File(tmp_path, f"{HEAD}def norm(rngs):\n    return nnx.LayerNorm(8, rngs=rngs)\n")
    line = file.line(Role.MADE, "nnx.LayerNorm(8, rngs=rngs)")
    patch = patch_of([LAYER], [line, line])
    assert len(patch.edits) == len(patch.changes) == 1
    assert patch.diff.count("\n@@") == 1
    assert "+    return nnx.LayerNorm(8, epsilon=1e-05, rngs=rngs)\n" in patch.diff


def test_a_layer_that_linen_makes_where_setup_assigns_it(mend: Any) -> None:
    text = "def setup(self):\n    self.a, self.b = nnx.LayerNorm(8{}), nnx.Linear(8, 8)\n"
    assert mend(text.format(""), Role.MADE, "self.a", LAYER) == text.format(", epsilon=1e-05")


@pytest.mark.parametrize("made", ["functools.partial(nnx.LayerNorm, 8, epsilon=1e-6, rngs=rngs)", "nnx.LayerNorm"])
def test_a_layer_made_by_another_name_of_its_class(made: str, mend: Any) -> None:
    """Each call has its own setting: other layers that are made by the name may be right."""
    text = f"import functools\n\n\ndef make(rngs):\n    norm = {made}\n    return norm({{}})\n"
    assert mend(text.format(""), Role.MADE, "norm()", LAYER) == text.format("epsilon=1e-05")


def test_a_function_of_the_file_is_given_no_setting_that_it_may_not_take(mend: Any) -> None:
    text = "def make(rngs):\n    def norm(size):\n        return nnx.LayerNorm(size, rngs=rngs)\n\n    return norm(8)\n"
    assert mend(text, Role.MADE, "norm(8)", LAYER) is None


def test_another_class_at_the_line_is_left_alone(mend: Any) -> None:
    """A control: the line is of something else than the fix."""
    text = "def make(rngs):\n    return nnx.RMSNorm(8, rngs=rngs)\n"
    assert mend(text, Role.MADE, "nnx.RMSNorm(8, rngs=rngs)", LAYER) is None


@pytest.mark.parametrize(
    ("before", "code", "after"),
    [
        ("nnx.gelu(y + 1)", EXACT, "nnx.gelu(y + 1, approximate=False)"),
        ("jax.nn.gelu(y, True)", EXACT, "jax.nn.gelu(y, False)"),
        ("nnx.relu(y + 1)", EXACT, "jax.nn.gelu(y + 1, approximate=False)"),
        ("nnx.relu(y)", Code("jax.nn.softplus", ("2 * x",), around="{} / 2"), "jax.nn.softplus(2 * y) / 2"),
        ("nnx.relu(y)", Code("jax.nn.sigmoid", ("1.702 * x",), around="x * {}"), "y * jax.nn.sigmoid(1.702 * y)"),
        (
            "nnx.relu(y @ y)",
            Code("jax.nn.sigmoid", ("x",), around="x * {}"),
            "(lambda x: x * jax.nn.sigmoid(x))(y @ y)",
        ),
        ("act(y)", EXACT, "jax.nn.gelu(y, approximate=False)"),
        ("y * 0.5", Code(around="0.25 * x"), "0.25 * y"),
        ("(y + y) / 3", Code(around="x / 2"), "(y + y) / 2"),
        ("act(y) / WIDTH**0.5", Code(around="x * 0.5"), "act(y) * 0.5"),
        ("act(y) @ y * 2", Code("jax.nn.dot_product_attention", keywords={"scale": 0.5}), "(act(y) @ y) * 0.5"),
        ("y.max((1, 2))", Code("jnp.mean"), "y.mean((1, 2))"),
        ("jnp.sum(y, axis=1)", Code("jnp.mean"), "jnp.mean(y, axis=1)"),
        ("act(y) + 1", Code(around="y / 2"), "(act(y) + 1) / 2"),
    ],
)
def test_a_function(before: str, code: Code, after: str, mend: Any) -> None:
    text = "WIDTH = 4\n\n\ndef forward(act, y):\n    return {}\n"
    assert mend(text.format(before), Role.COMPUTED, before, code) == text.format(after)


@pytest.mark.parametrize(
    ("before", "wrong", "after"),
    [
        ("x / 3", 3.0, "x / 8"),
        ("x * 0.25", 4.0, "x / 8"),
        ("x / WIDTH**0.5", 4.0, "x / 8"),
        ("2 * jnp.pi * x", 3.0, None),  # another number of the same expression
        ("x / 2", None, "x / 8"),  # the only one that it may be
        ("3 / x", 3.0, None),
    ],
)
def test_the_wrong_constant_is_exchanged(before: str, wrong: float | None, after: str | None, mend: Any) -> None:
    text = f"WIDTH = 16\n\n\ndef f(x):\n    return {before}\n"
    found = mend(text, Role.COMPUTED, before, Code(around="x / 8", wrong=wrong))
    assert found == (None if after is None else text.replace(before, after))


def test_what_is_computed_in_a_loop_is_not_divided_there(mend: Any) -> None:
    """Each time round the loop would divide once more, and what differs is the last value alone."""
    text = "def f(x):\n    y = 0\n    for each in x:\n        y = y + each\n    return y\n"
    code = Code(around="y / 2")
    assert mend(text, Role.COMPUTED, "y + each", code) is None
    text = text.replace("    for each in x:\n        y = y + each", "    each = x\n    y = y + each")
    assert mend(text, Role.COMPUTED, "y + each", code) == text.replace("y + each", "(y + each) / 2")  # a control


def test_which_of_two_functions_is_not_guessed(tmp_path: Path) -> None:
    file = File(tmp_path, f"{HEAD}def forward(x):\n    return nnx.relu(nnx.silu(x))\n")
    lines = [file.line(Role.COMPUTED, each) for each in ("nnx.relu(nnx.silu(x))", "nnx.silu(x)")]
    assert file.after(EXACT, *lines) is None
    assert file.after(EXACT, lines[1]) == "def forward(x):\n    return nnx.relu(jax.nn.gelu(x, approximate=False))\n"


def test_of_two_functions_the_one_that_the_cause_names_is_meant(tmp_path: Path) -> None:
    file = File(tmp_path, f"{HEAD}def forward(x):\n    return nnx.relu(nnx.silu(x))\n")
    lines = [file.line(Role.COMPUTED, each) for each in ("nnx.relu(nnx.silu(x))", "nnx.silu(x)")]
    code = Code("jax.nn.gelu", ("x",), {"approximate": False}, instead="jax.nn.silu")
    assert file.after(code, *lines) == "def forward(x):\n    return nnx.relu(jax.nn.gelu(x, approximate=False))\n"


def test_what_a_layer_gives_and_takes(mend: Any) -> None:
    text = "def forward(layer, x):\n    return {}\n"
    code = Code("jnp.transpose", ("y", "(0, 2, 1)"))
    given, taken = "jnp.transpose(layer(x), (0, 2, 1))", "layer(jnp.transpose(x, (0, 2, 1)))"
    assert mend(text.format("layer(x)"), Role.CALLED, "layer(x)", code) == text.format(given)
    assert mend(text.format("layer(x)"), Role.GIVEN, "layer(x)", code) == text.format(taken)


MEAN = Code("optax.huber_loss", ("output", "target"), {"delta": 0.5}, "jnp.mean({})")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("def loss(o, t):\n    return abs(o - t)\n", "def loss(o, t):\n    return {}\n"),
        ("loss = lambda o, t: abs(o - t)\n", "loss = lambda o, t: {}\n"),
        (
            'def loss(o, t):\n    """Say."""\n    d = o - t\n    return d\n',
            'def loss(o, t):\n    """Say."""\n    return {}\n',
        ),
    ],
)
def test_a_loss(before: str, after: str, mend: Any) -> None:
    first = before.partition("\n")[0]
    expected = "jnp.mean(optax.huber_loss(o, t, delta=0.5))"
    assert mend(before, Role.DEFINED, first, MEAN) == after.format(expected)


@pytest.mark.parametrize(
    "before", ["def loss(o, t):\n    o, _ = o\n    return abs(o - t)\n", "loss = lambda o, t: o[0] - t\n"]
)
def test_a_loss_of_a_part_of_the_output_is_left_alone(before: str, mend: Any) -> None:
    assert mend(before, Role.DEFINED, before.partition("\n")[0], MEAN) is None


def test_what_replaces_one_term_of_a_loss_makes_no_patch(mend: Any) -> None:
    text = "def loss(o, t):\n    return abs(o - t)\n"
    assert mend(text, Role.DEFINED, "def loss(o, t):", dataclasses.replace(MEAN, whole=False)) is None
    assert mend(text, Role.DEFINED, "def loss(o, t):", MEAN)  # a control


def test_a_part_of_another_function_is_not_exchanged(mend: Any) -> None:
    """The cause names silu, and of x * sigmoid(x) the call is a part."""
    code, text = dataclasses.replace(EXACT, instead="jax.nn.silu"), "def forward(x):\n    return {}\n"
    assert mend(text.format("x * nnx.sigmoid(x)"), Role.COMPUTED, "nnx.sigmoid(x)", code) is None
    after = text.format("x * jax.nn.gelu(x, approximate=False)")
    assert mend(text.format("x * nnx.silu(x)"), Role.COMPUTED, "nnx.silu(x)", code) == after  # a control


def test_what_a_loss_gives(mend: Any) -> None:
    text = "def loss(o, t):\n    d = o - t\n    return {}\n"
    assert mend(text.format("(d * d).sum()"), Role.DEFINED, "def loss(o, t):", Code(around="y / 2")) == text.format(
        "(d * d).sum() / 2"
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("def sides(): return (9, lambda o, t: {})\n", "abs(o - t).sum() / 2"),
        ("def loss(o, t, *, by=lambda d: d.sum()):\n    return {}\n", "by(abs(o - t)) / 2"),
        ("def sides(): return (lambda a, b: 1.0, lambda o, t: {})\n", None),
        ("def loss(o, t): return (lambda a, b: {})(o, t)\n", None),
    ],
)
def test_of_several_functions_at_one_line_that_which_can_be_the_loss_is_mended(
    before: str, after: str | None, mend: Any
) -> None:
    was = "by(abs(o - t))" if "by=" in before else "abs(o - t).sum()"
    wanted = None if after is None else before.format(after)
    first = before.partition("\n")[0]
    assert mend(before.format(was), Role.DEFINED, first.format(was), Code(around="y / 2")) == wanted


CLIP = "optax.clip(0.5)"


@pytest.mark.parametrize(
    ("before", "code", "after"),
    [
        ("optax.adam(1e-3)", Code("optax.adam", keywords={"b1": 0.8}), "optax.adam(1e-3, b1=0.8)"),
        ("optax.adam(1e-3, 0.7)", Code("optax.adam", keywords={"b1": 0.8}), "optax.adam(1e-3, 0.8)"),
        (
            "optax.adam(1e-3)",
            Code("optax.adam", (), {"learning_rate": 0.1, "b1": 0.8}),
            "optax.adam(0.1, b1=0.8)",
        ),
        (
            "optax.adam(1e-3, b2=0.9)",
            Code("optax.adamw", keywords={"weight_decay": 0.1}),
            "optax.adamw(1e-3, b2=0.9, weight_decay=0.1)",
        ),
        (
            "optax.adam(1e-3)",
            Code("optax.chain", (CLIP, "optax.adam(..., b1=0.8)")),
            "optax.chain(optax.clip(0.5), optax.adam(1e-3, b1=0.8))",
        ),
        (
            "optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))",
            Code("optax.chain", (CLIP, "optax.adam(...)")),
            "optax.chain(optax.clip(0.5), optax.adam(1e-3))",
        ),
        (
            "optax.chain(optax.add_decayed_weights(0.1), optax.sgd(1e-3))",
            Code("optax.chain", (CLIP, "optax.sgd(...)")),
            "optax.chain(optax.add_decayed_weights(0.1), optax.clip(0.5), optax.sgd(1e-3))",
        ),
        (
            "optax.chain(optax.clip(0.5), optax.adam(1e-3))",
            Code("optax.adam", keywords={"eps": 1e-6}),
            "optax.chain(optax.clip(0.5), optax.adam(1e-3, eps=1e-06))",
        ),
    ],
)
def test_an_optimizer(before: str, code: Code, after: str, mend: Any) -> None:
    assert mend(f"tx = {before}\n", Role.MADE, before, code) == f"tx = {after}\n"


@pytest.mark.parametrize("choice", ["optax.clip_by_global_norm(2.0) if NORM else optax.identity()", "CLIPS[NORM]"])
def test_beside_a_choice_in_a_chain_nothing_is_added(choice: str, mend: Any) -> None:
    """It may do what the fix does in its place."""
    text = "NORM = True\nCLIPS = [optax.identity(), optax.clip_by_global_norm(2.0)]\n\ntx = {}\n"
    code = Code("optax.chain", (CLIP, "optax.sgd(...)"))
    chain = f"optax.chain({choice}, optax.sgd(1e-2))"
    assert mend(text.format(chain), Role.MADE, chain, code) is None
    control = "optax.chain(optax.clip(0.5), optax.identity(), optax.sgd(1e-2))"
    chain = "optax.chain(optax.clip_by_global_norm(2.0), optax.identity(), optax.sgd(1e-2))"
    assert mend(text.format(chain), Role.MADE, chain, code) == text.format(control)


def test_an_optimizer_that_is_a_variable_of_a_chain(mend: Any) -> None:
    text = "def make():\n    adam = optax.adam({})\n    return optax.chain(optax.clip(1.0), adam)\n"
    code = Code("optax.adam", keywords={"b1": 0.8})
    chain = "optax.chain(optax.clip(1.0), adam)"
    assert mend(text.format("1e-3"), Role.MADE, chain, code) == text.format("1e-3, b1=0.8")


def test_an_argument_that_another_optimizer_has_not(mend: Any) -> None:
    code = Code("optax.adam", keywords={"b1": 0.8})
    assert mend("tx = optax.sgd(0.1, momentum=0.9)\n", Role.MADE, "optax.sgd(0.1, momentum=0.9)", code) is None


def test_names_are_those_of_the_file_and_what_it_lacks_is_imported(tmp_path: Path) -> None:
    file = File(tmp_path, "from flax import nnx\n\n\ndef forward(x):\n    return nnx.relu(x)\n")
    line = file.line(Role.COMPUTED, "nnx.relu(x)")
    assert file.after(EXACT, line) == file.text.replace("nnx.relu(x)", "nnx.gelu(x, approximate=False)")
    other = file.after(Code("jnp.tanh", ("x",)), line)
    assert other == file.text.replace("nnx.relu(x)", "jnp.tanh(x)").replace(
        "nnx\n", "nnx\nimport jax.numpy as jnp\n", 1
    )


def test_a_file_that_has_changed_since_gets_no_patch(tmp_path: Path) -> None:
    file = File(tmp_path, f"{HEAD}def make(rngs):\n    return nnx.LayerNorm(8, rngs=rngs)\n")
    line = file.line(Role.MADE, "nnx.LayerNorm(8, rngs=rngs)")
    assert patch_of([LAYER], [line])
    file.path.write_text(file.text.replace("8", "9"), encoding="utf-8")
    with pytest.raises(Unfit, match="has changed since it ran"):
        patch_of([LAYER], [line])


def test_patches_of_one_call_go_together_unless_they_change_the_same(tmp_path: Path) -> None:
    file = File(tmp_path, f"{HEAD}tx = optax.adam(1e-3)\n")
    line = file.line(Role.MADE, "optax.adam(1e-3)")

    def both(*keywords: dict[str, float]) -> str:
        patches = [patch_of([Code("optax.adam", keywords=each)], [line]) for each in keywords]
        return applied(file.text, together(patches)).removeprefix(HEAD)

    assert both({"b1": 0.5}, {"b2": 0.5}) == "tx = optax.adam(1e-3, b1=0.5, b2=0.5)\n"
    assert both({"learning_rate": 0.1}, {"learning_rate": 0.2}) == "tx = optax.adam(0.1)\n"


def test_a_setting_that_is_there_already_is_no_patch(mend: Any) -> None:
    made = "nnx.LayerNorm(8, epsilon=1e-05, rngs=rngs)"
    assert mend(f"def make(rngs):\n    return {made}\n", Role.MADE, made, LAYER) is None


CHAIN = Code("optax.chain", ("optax.add_decayed_weights(0.1)", "optax.adam(...)"))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("optax.adamw(2e-3, weight_decay=0.1)", "optax.chain(optax.add_decayed_weights(0.1), optax.adam(2e-3))"),
        (
            "optax.adamw(weight_decay=0.2, learning_rate=1e-3, b1=0.8)",
            "optax.chain(optax.add_decayed_weights(0.1), optax.adam(learning_rate=1e-3, b1=0.8))",
        ),
        ("optax.adamw(1e-3, mask=None)", None),  # what it leaves undecayed would be lost
    ],
)
def test_a_decay_that_the_optimizer_has_goes_into_a_chain(before: str, after: str | None, mend: Any) -> None:
    assert mend(f"tx = {before}\n", Role.MADE, before, CHAIN) == (after and f"tx = {after}\n")


def test_a_mask_that_attention_written_by_hand_lacks(mend: Any) -> None:
    text = "def attend(q, k, v):\n    return jax.nn.softmax({}) @ v\n"
    made = "jax.nn.softmax(q @ k.T)"
    masked = "(lambda x: jnp.where(jnp.tril(jnp.ones(x.shape[-2:], bool)), x, -jnp.inf))(q @ k.T)"
    causal = Code("jax.nn.dot_product_attention", keywords={"is_causal": True})
    assert mend(text.format("q @ k.T"), Role.COMPUTED, made, causal) == text.format(masked)
    open_ = Code("jax.nn.dot_product_attention", keywords={"is_causal": False})
    assert mend(text.format("q @ k.T"), Role.COMPUTED, made, open_) is None  # whose mask is somewhere else


@pytest.mark.parametrize("earlier", [None, "epsilon", "unknown"])
def test_an_operation_is_not_removed_after_a_difference_that_is_not_mended(tmp_path: Path, earlier: str | None) -> None:
    """What is one too many there may be missing earlier: softmax(dropout(x)) for dropout(softmax(x))."""
    layer = "nnx.LayerNorm(4, rngs=nnx.Rngs(0))"
    file = File(tmp_path, f"{HEAD}def forward(x):\n    norm = {layer}\n    return jax.nn.softmax(norm(x))\n")
    softmax = Cause("operation added", "", "leave out softmax", code=(Code(around="x", before=("jax.nn.softmax(x)",)),))
    epsilon = Cause("epsilon", "", "epsilon=1e-05", code=(Code("nnx.LayerNorm", keywords={"epsilon": 1e-05}),))
    added = difference(2, softmax, file.line(Role.COMPUTED, "jax.nn.softmax(norm(x))"))
    before = difference(1, epsilon if earlier == "epsilon" else None, file.line(Role.MADE, layer))
    after = difference(3, None, file.line(Role.COMPUTED, "norm(x)"))
    groups = grouped([*([before] if earlier else []), added, after], ({}, {}))
    removal = next(group for group in groups if group.name == "operation added")
    assert (removal.patch is None) == (earlier == "unknown")
    assert not removal.patch or "+    return norm(x)" in removal.patch.diff
    assert ("mend that one first" in removal.unpatched) == (earlier == "unknown")
