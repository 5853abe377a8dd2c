"""Every example of the README and of docs/ runs: a page from top to bottom, as somebody who follows it would.

A Python block that starts with `# name.py` is a file, and a diff changes such files. Any other Python block runs after
those before it; what it defines as a test runs as one. In a console block, commands run and print what is shown, where
"..." is anything and measured numbers are any numbers; they fail if and only if they show ✗.
"""

import contextlib
import doctest
import io
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
import torch

import compare
from compare.command_line.main import main
from compare.report.traps import ROWS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NEEDS_PCAST = pytest.mark.skipif(not hasattr(jax.lax, "pcast"), reason="its examples use jax.lax.pcast")
LONG = ("getting-started.md", "optimizers.md", "programs.md")
"""The pages whose programs take half a minute; CI runs those of the README."""

RUN = [
    pytest.param(
        page,
        id=page.name,
        marks=[
            *[NEEDS_PCAST] * (page.name == "programs.md"),
            *[pytest.mark.slow] * (page.name in LONG),
            *[pytest.mark.always] * (page.name == "README.md"),
        ],
    )
    for page in PAGES
]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def blocks(page: Path) -> list[tuple[str, str]]:
    """Give the language and the text of each block."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(block: str) -> list[tuple[list[str], str]]:
    """Give the arguments of Python in each command, and what is shown below it."""
    block = re.sub(r"^\$ netparity\b", "$ python -m compare", block, flags=re.MULTILINE)  # which do the same
    found = re.findall(r"^\$ python -m (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
    return [(command.split("  #")[0].split(), shown) for command, shown in found]


def without_numbers(text: str) -> str:
    if "bias" not in repr(torch.nn.LayerNorm(1)):  # which older versions of PyTorch do not print
        text = text.replace("elementwise_affine=True, bias=True)", "elementwise_affine=True)")
    return re.sub(r"\d+\.\d+s( \(\d+:\d+:\d+\))?|\d+\.\d+(e[-+]\d+)?|\d+e[-+]\d+|\d+ ms", "0.0", text)


def run(arguments: list[str], folder: Path) -> tuple[int, str]:
    """Run a command: in this process, if it can be, where both frameworks are loaded already."""
    if arguments[0] != "compare":
        done = subprocess.run([sys.executable, "-m", *arguments], cwd=folder, capture_output=True, text=True)
        return done.returncode, done.stdout or done.stderr
    arguments = [*arguments[1:], *(["--device", "cpu"] if "published" not in arguments else ["--help"])]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        try:
            status = main(arguments)
        except SystemExit as stop:  # published, which test_command_line.py runs in full
            return int(stop.code or 0), ""
    return status, output.getvalue()


def check_command(arguments: list[str], shown: str, folder: Path) -> None:
    status, printed = run(arguments, folder)
    if shown.strip():
        same = doctest.OutputChecker().check_output(without_numbers(shown), without_numbers(printed), FLAGS)
        assert same, f"{' '.join(arguments)} prints\n{printed}"
        assert bool(status) == ("✗" in shown or " failed" in shown)
    else:
        assert status == 0, printed


def check_python(block: str, names: dict[str, Any], request: pytest.FixtureRequest) -> None:
    if ">>>" in block:
        test = doctest.DocTestParser().get_doctest(block, names, "block", None, 0)
        failed = doctest.DocTestRunner(optionflags=FLAGS).run(test, clear_globs=False).failed
        names.update(test.globs)
        assert failed == 0
        return
    before = set(names)
    exec(compile(block, "block", "exec"), names)
    for name in set(names) - before:
        if name.startswith("test_"):
            names[name](request.getfixturevalue("parity"))


def patch(diff: str, folder: Path) -> None:
    """Change the files of a page as a diff says."""
    lines = diff.splitlines()
    for old, new in zip(lines[::2], lines[1::2], strict=True):
        assert (old[0], new[0]) == ("-", "+")
        holds = [file for file in folder.glob("*.py") if f"{old[1:].strip()}\n" in file.read_text()]
        assert len(holds) == 1, old
        holds[0].write_text(holds[0].read_text().replace(old[1:].strip(), new[1:].strip()))


@pytest.mark.parametrize("page", RUN)
def test_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a file that is changed within a second is another
    names: dict[str, Any] = {"__name__": "block"}
    for language, block in blocks(page):
        for file in tmp_path.glob("*.py"):
            sys.modules.pop(file.stem, None)
        if language == "diff":
            patch(block, tmp_path)
        elif language == "python" and (file_name := re.match(r"# (\w+\.py)\n", block)):
            (tmp_path / file_name[1]).write_text(block)
        elif language == "python":
            check_python(block, names, request)
        elif language == "console":
            for arguments, shown in commands(block):
                check_command(arguments, shown, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target


def headings(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"^#+ (.*)$", text, re.MULTILINE)


def anchor(heading: str) -> str:
    """Give the anchor of a heading on the site, which is that on GitHub too."""
    plain = re.sub(r"[^\w\s-]", "", heading).strip().lower()
    assert re.sub(r"[-\s]+", "-", plain) == plain.replace(" ", "-"), f"{heading!r} has two anchors"
    return plain.replace(" ", "-")


def test_sections_that_reports_link_to_exist() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "compare").rglob("*.py"))
    anchors = {f"docs/{page.name}": {*map(anchor, headings(page))} for page in PAGES}
    named = [tuple(link.partition("#")[::2]) for link in re.findall(r"docs/\w+\.md(?:#[\w-]+)?", code)]
    for page, section in [*named, *(tuple(row.link.split("#")) for row in ROWS)]:
        assert page in anchors, page
        assert not section or section in anchors[page], f"{page}#{section}"


def test_a_trap_that_alone_has_its_cause_is_linked_to() -> None:
    text = (ROOT / "docs" / "traps.md").read_text(encoding="utf-8")
    shown = re.findall(r"^- Shows: mismatch at step \d+, [^:]*: ([^:]*)$", text, re.MULTILINE)
    alone = {cause for cause in shown if shown.count(cause) == 1}
    assert alone - {row.cause for row in ROWS} == UNLINKED


UNLINKED = {
    *("amsgrad", "another layout", "another loss", "another operand", "another reduction", "another scale", "ascent"),
    *("constant", "dropout rate", "epsilon and initial accumulator and epsilon inside the root", "input mask"),
    *("input transposed", "mean or sum", "not a number", "operation added", "parameter groups", "resizing"),
    *("schedule and weight decay mask", "shape"),
}
"""Causes that say less than the trap that shows them, as "another operand" may be any operand, or several in one."""


def test_the_reference_is_that_of_the_docstrings() -> None:
    written = runpy.run_path(str(ROOT / "docs" / "reference.py"))
    assert (ROOT / "docs" / "reference.md").read_text(encoding="utf-8") == written["page"](), "run docs/reference.py"
    described = {name.rpartition(".")[2] for names in written["CONTENTS"].values() for name in names}
    assert {*compare.__all__} - {"notebook"} <= described
