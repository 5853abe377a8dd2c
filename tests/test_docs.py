"""Every Python block of the README and of docs/ runs, and every command that they show is one that exists."""

import doctest
import re
from pathlib import Path

import pytest

from compare.command_line import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
]
COMMANDS = sorted(
    {
        command
        for page in PAGES
        for block in re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        for command in re.findall(r"^\$ python -m compare(.*)$", block, re.MULTILINE)
    }
)


@pytest.mark.parametrize("block", BLOCKS)
def test_python(block: str) -> None:
    if ">>>" in block:
        test = doctest.DocTestParser().get_doctest(block, {}, "block", None, 0)
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        assert runner.run(test).failed == 0
    else:
        exec(compile(block, "block", "exec"), {"__name__": "block"})


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = command.split()
    if arguments[:1] == ["published"]:
        arguments = [*arguments, "--help"]  # run in full by test_command_line.py
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
    else:
        assert main([*arguments, "--device", "cpu"]) == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target
