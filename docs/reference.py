"""Write docs/reference.md from the docstrings: `python docs/reference.py`, without importing what it describes."""

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

CONTENTS = {
    "Comparing": [
        *("comparison.check.check", "torch_side.side.Torch", "jax_side.side.Flax", "jax_side.side.Jax"),
        *("torch_side.program.TorchProgram", "jax_side.program.JaxProgram"),
        "errors.InputError",
    ],
    "What was found": [
        *("report.report.Report", "report.findings.Findings", "verdict.ratio.Verdict"),
        *("verdict.divergence.Divergence", "verdict.divergence.Cause", "verdict.divergence.Part"),
        *("verdict.divergence.Detail", "verdict.divergence.DetailKind"),
        "verdict.measured.Measured",
        "verdict.ratio.Quantity",
        *("report.findings.Run", "alignment.pairings.NotCompared", "report.groups.Group"),
        *("report.summary.StageSummary", "report.summary.LeftOut"),
    ],
    "In pytest": ["netparity.pytest_plugin.parity"],
    "Weights": ["conversion.copy_weights", "conversion.Copied", "weights.links.WeightMap", "weights.links.Link"],
    "Power": ["faults.power.power", "report.power.Power", "report.power.Outcome", "report.power.Why"],
    "Progress": ["report.progress.Progress"],
    "The notebook": [
        *("notebook.comparison.run", "notebook.problem.draw", "notebook.problem.Problem"),
        *("notebook.programs.altered", "notebook.programs.Altered"),
    ],
}
"""Where each public name, and each class of which a public function gives an object, is written."""

INTERNAL = ("layers", "functional", "add_torch", "add_difference", "add_jax", "add_noise")
"""Methods that are meant only for other modules of compare."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def page() -> str:
    """Give the whole page."""
    lines = [
        "# Reference",
        "",
        "Every public name of `compare`, from its docstring. `python docs/reference.py` writes it. Names that are",
        "not listed here may change without notice.",
    ]
    for heading, names in CONTENTS.items():
        lines += ["", f"## {heading}"]
        for name in names:
            lines += ["", *_described(*name.rsplit(".", 1))]
    return "\n".join(lines) + "\n"


def _described(module: str, name: str) -> Iterator[str]:
    package = ROOT if module.startswith("netparity.") else ROOT / "compare"
    tree = ast.parse((package / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    node = next(each for each in tree.body if isinstance(each, Function | ast.ClassDef) and each.name == name)
    public = f"notebook.{name}" if module == "notebook.comparison" else name
    yield f"### {public}"
    if isinstance(node, Function):
        before = "" if module == "netparity.pytest_plugin" else f"compare.{public.removesuffix(name)}"
        yield f"\n```\n{_signature(node, before)}\n```"
    for paragraph in _paragraphs(ast.get_docstring(node) or ""):
        yield f"\n{paragraph}"
    if isinstance(node, ast.ClassDef) and (members := list(_members(node))):
        yield "\n" + "\n".join(members)


def _signature(node: Function, before: str = "") -> str:
    arguments = _plain(node.args)
    gives = f" -> {_plain(node.returns)}" if node.returns else ""
    text = f"{before}{node.name}({arguments}){gives}"
    if len(text) <= 110:
        return text
    parts = re.split(r", (?![^\[(]*[\])])", arguments)
    return f"{before}{node.name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){gives}"


def _plain(node: ast.AST) -> str:
    """Write it without the quotation marks that keep a framework from being imported."""
    return re.sub(r"'([^']*[.\[][^']*|[A-Z]\w*(?: \| None)?)'", r"\1", ast.unparse(node))


def _members(node: ast.ClassDef) -> Iterator[str]:
    """List fields, unless they are described as arguments, properties and methods."""
    rows, described = [], "Args:" in (ast.get_docstring(node) or "")
    for each, after in zip(node.body, [*node.body[1:], None], strict=True):
        text = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            text = after.value.value
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name) and not each.target.id.startswith("_"):
            rows += [] if described else [(f"{each.target.id}: {_plain(each.annotation)}", text)]
        elif isinstance(each, ast.Assign) and isinstance(each.targets[0], ast.Name) and text:
            rows.append((ast.unparse(each), text))
        elif isinstance(each, Function) and not each.name.startswith("_") and each.name not in INTERNAL:
            is_property = any(ast.unparse(decorator) == "property" for decorator in each.decorator_list)
            gives = f": {_plain(each.returns)}" if each.returns else ""
            rows.append((f"{each.name}{gives}" if is_property else _signature(each), ast.get_docstring(each) or ""))
    for name, text in rows:
        shown = name.replace("self, ", "").replace("(self)", "()")
        yield _wrapped(f"- `{shown}`: {text}".removesuffix(": "))


def _paragraphs(docstring: str) -> Iterator[str]:
    """Turn the sections of a docstring into lists."""
    for paragraph in docstring.split("\n\n"):
        first, *rest = paragraph.splitlines()
        items = re.split(r"\n(?=\S)", textwrap.dedent("\n".join(rest)))
        if first in ("Args:", "Raises:"):
            yield {"Args:": "Arguments:", "Raises:": "Raises:"}[first]
            yield "\n".join(_wrapped("- `{}`:{}".format(*item.split(":", 1))) for item in items)
        elif first == "Returns:":
            yield _wrapped("Returns: " + " ".join(rest))
        elif first.startswith("    "):
            yield f"```\n{textwrap.dedent(paragraph)}\n```"
        else:
            yield _wrapped(paragraph)


def _wrapped(text: str) -> str:
    indent = "  " if text.startswith("- ") else ""
    return "\n".join(textwrap.wrap(" ".join(text.split()), 119, subsequent_indent=indent, break_on_hyphens=False))


if __name__ == "__main__":
    (ROOT / "docs" / "reference.md").write_text(page(), encoding="utf-8")
