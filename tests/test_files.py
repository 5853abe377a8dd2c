"""The commands' files, streams and exit statuses, where something is not as usual."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from compare.command_line.files import job_summary, opened
from compare.command_line.interruptible import Terminated, until_terminated
from compare.command_line.main import main
from compare.command_line.printable import printable
from compare.errors import InputError
from netparity.pytest_plugin import _file_name


def write(path: Path, text: str) -> None:
    with opened(path) as partial:
        partial.write_text(text)


def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "out.json", tmp_path / "latest.json"
    target.write_text("before")
    link.symlink_to(target)
    write(link, "after")
    assert link.is_symlink()
    assert target.read_text() == "after"
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["elsewhere", "latest.json", "out.json"]


def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write(pipe, "all of it")
    reader.join(10)
    assert read == ["all of it"]
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


@pytest.mark.parametrize("redirected", [True, False])
def test_standard_output_is_a_file_like_others(redirected: bool, tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from compare.command_line.files import opened\n"
        "print('first')\n"
        "with opened(Path('/dev/stdout')) as partial: partial.write_text('second')\n"
    )
    command = [sys.executable, "-c", program]
    if redirected:
        with (tmp_path / "log").open("w") as log:
            subprocess.run(command, stdout=log, check=True)
        assert (tmp_path / "log").read_text() == "first\nsecond"
    else:
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "first\nsecond"
    assert Path("/dev/stdout").is_symlink()


def test_what_cannot_be_written_is_known_before_any_work(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"nowhere/out\.json cannot be written: No such file"),
        opened(tmp_path / "nowhere" / "out.json"),
    ):
        raise AssertionError
    with pytest.raises(InputError, match="cannot be written: Is a directory"), opened(tmp_path):
        raise AssertionError


@pytest.mark.parametrize(("encoding", "shown"), [("cp1252", "+ a match ?"), ("utf-8", "✓ a match ∂")])
def test_a_stream_that_cannot_hold_every_character(encoding: str, shown: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding, errors="strict")
    with printable(stream):
        stream.write("✓ a match ∂")
    stream.flush()
    assert raw.getvalue().decode(encoding) == shown
    assert stream.errors == "strict"
    with printable(io.StringIO()) as nothing:  # which cannot be reconfigured, and need not
        assert nothing is None


def test_a_summary_that_cannot_be_written_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "nowhere" / "summary"))
    out = tmp_path / "out.json"
    assert main(["--variant", "manual", "--steps", "2", "--json", str(out), "--device", "cpu"]) == 0
    assert out.exists()
    assert "warning: GITHUB_STEP_SUMMARY" in capsys.readouterr().err
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary"))
    job_summary([])
    assert (tmp_path / "summary").exists()


def fails(*args: Any, **settings: Any) -> Any:
    raise KeyError("of our own")


def exits(*args: Any, **settings: Any) -> Any:
    sys.exit(0)


def test_an_error_of_this_package_is_no_mismatch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("compare.command_line.commands.run", fails)
    out = tmp_path / "out.json"
    assert main(["--variant", "manual", "--json", str(out)]) == 3
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" in printed.err
    assert "internal error: KeyError, at: " in printed.err
    assert "This is a bug in netparity and says nothing about your port. Please report it" in printed.err
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("compare.command_line.commands.run", exits)
    with pytest.raises(SystemExit) as stop:
        main(["--variant", "manual"])
    assert stop.value.code == 2
    assert "error: SystemExit: 0" in capsys.readouterr().err


def test_sigterm_leaves_no_file_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def terminated(*args: Any, **settings: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)  # which the main thread sees, while the work goes on
        time.sleep(2)

    monkeypatch.setattr("compare.command_line.commands.run", terminated)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["--variant", "manual", "--json", str(tmp_path / "out.json")]) == 143
    assert list(tmp_path.iterdir()) == []
    assert "stopped at: " in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(Terminated), until_terminated():
        signal.raise_signal(signal.SIGTERM)


def test_a_closed_pipe_loses_no_file(tmp_path: Path) -> None:
    command = f"{sys.executable} -m compare --variant manual --steps 2 --device cpu --json out.json"
    command = f"set -o pipefail; {command} | true"
    run = subprocess.run(["/bin/bash", "-c", command], cwd=tmp_path, check=False)
    assert run.returncode == 0
    assert (tmp_path / "out.json").exists()


def test_tests_that_differ_have_reports_that_differ() -> None:
    ids = [f"test_a.py::test_ids[{each}]" for each in ("a/b", "a b", "a+b", "a-b", "ab", "é", "")]
    ids += [
        "test_a.py::test_ids",
        "d/test_a.py::test_ids",
        "d-test_a.py::test_ids",
        "test_a.py::T::test_ids",
        "x" * 300,
    ]
    ids += ["x" * 301]
    names = [_file_name(each, 1) for each in ids]
    assert len({name.casefold() for name in names}) == len(ids)
    assert all(name.isascii() or "é" in name for name in names)
    assert max(map(len, names)) < 200
    assert _file_name("tests/test_a.py::test_b[c]", 1) == "tests-test_a.py-test_b-c"
    assert _file_name("tests/test_a.py::test_b", 2) == "tests-test_a.py-test_b-check2"
