"""The `netparity` command, and the plugin, where a user's folder has a `compare.py`, which is a common name."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from compare.command_line.main import main
from compare.command_line.user_function import arguments_of
from compare.errors import InputError

ROOT = Path(__file__).parents[1]
THEIRS = "raise SystemExit('this is the user\\'s own compare.py')\n"
PAIR = "def pair():\n    return 'a', 'b', 'c'\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "compare.py").write_text(THEIRS)
    modules = {**sys.modules}
    yield tmp_path
    # Not by another dict in place of sys.modules: PyTorch, imported under it for the first time, crashes.
    for name, module in {**sys.modules}.items():
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]
    sys.modules.update(modules)


def python(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python as an installed script does (`-P`), or as `python -m` does, with the folder searched first."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, env=environment)


def test_the_command_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"netparity": "netparity.command:main"}
    assert project["entry-points"]["pytest11"] == {"parity": "netparity.pytest_plugin"}


@pytest.mark.parametrize("command", [["-P", "-c", "from netparity.command import main; main()"], ["-m", "netparity"]])
def test_a_compare_py_does_not_take_its_place(command: list[str], here: Path) -> None:
    done = python(*command, "--version", folder=here)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"netparity {importlib.metadata.version('netparity')}\n"


def test_that_file_would_take_the_place_of_python_m_compare(here: Path) -> None:
    assert "user's own" in python("-m", "compare", "--version", folder=here).stderr


def test_a_compare_py_does_not_break_pytest(here: Path) -> None:
    """`python -m pytest` searches the folder first. The user's tests get their own module."""
    (here / "compare.py").write_text("mine = True\n")
    (here / "test_mine.py").write_text("import compare\n\ndef test_mine():\n    assert compare.mine\n")
    (here / "test_port.py").write_text("def test_port(parity):\n    parity(1, 2, 3)\n")
    code = "import sys, pytest; sys.path.insert(0, ''); sys.exit(pytest.main(sys.argv[1:]))"
    plain = ["-q", "-p", "no:cacheprovider", "-p", "netparity.pytest_plugin"]
    environment = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(*next(iter(environment.items())))
        done = python("-c", code, *plain, folder=here)
    assert "1 passed, 1 error" in done.stdout, done.stdout + done.stderr
    assert re.search(r"compare\.py has the name of netparity's package compare", done.stdout)


def test_a_function_in_a_file(here: Path) -> None:
    folder = here / "ports"
    folder.mkdir()
    (folder / "beside_it.py").write_text("name = 'beside'\n")
    (folder / "mine_in_a_file.py").write_text(f"import beside_it\n{PAIR}")
    expected = {"torch": "a", "jax": "b", "batches": "c"}
    assert arguments_of("ports/mine_in_a_file.py:pair") == expected
    assert arguments_of(f"{folder / 'mine_in_a_file.py'}:pair") == expected


def test_a_module_of_the_folder_that_a_script_does_not_search(here: Path) -> None:
    (here / "mine_here.py").write_text(PAIR)
    assert arguments_of("mine_here:pair")["torch"] == "a"


def test_a_file_that_has_the_name_of_the_package(here: Path) -> None:
    (here / "compare.py").write_text(PAIR)
    assert arguments_of("compare.py:pair")["torch"] == "a"
    with pytest.raises(InputError, match=r"compare has no function 'pair'.* write compare\.py:pair"):
        arguments_of("compare:pair")


def test_a_file_that_is_not_there(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"there is no file .*absent\.py"):
        arguments_of("absent.py:pair")
    with pytest.raises(InputError, match=r"importing compare\.py raised SystemExit: this is the user's own"):
        arguments_of("compare.py:pair")
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith("netparity ")
