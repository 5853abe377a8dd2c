"""`netparity check --fix`: rounds of patches, what stays and what is taken back."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from compare.command_line.repair import ROUNDS, Checked, Repair

NAMES = ("alpha", "beta", "gamma")


def group(file: Path, name: str, before: str, after: str) -> dict[str, Any]:
    """Give a finding with a patch, as JSON has it."""
    start = file.read_text().index(before)
    edit = {"file": str(file), "start": start, "end": start + len(before), "text": after}
    patch = {"diff": f"-{before}\n+{after}\n", "edits": [edit]}
    return {"title": name, "cause": name, "places": [{"torch": name, "jax": name}], "patch": patch}


def report(
    groups: Sequence[Mapping[str, Any]], step: int = 0, errors: Mapping[str, float] = MappingProxyType({})
) -> Any:
    places = [place for group in groups for place in group.get("places", ())]
    found = [{"step": step, "number": NAMES.index(each["torch"]), **each} for each in places]
    first, others = (found[0], found[1:]) if found else (None, [])
    verdict = "mismatch" if groups else "match"
    quantities = [{"error64": [errors.get(name, 0.0)] * (step + 1)} for name in NAMES]
    return {
        "verdict": verdict,
        "headline": verdict,
        "divergence": first,
        "others": others,
        "groups": groups,
        "quantities": quantities,
    }


class Program:
    """A file of settings, each of which should be 1. A check finds those that are not."""

    def __init__(self, folder: Path, **values: str) -> None:
        self.file = folder / "port.py"
        self.file.write_text("".join(f"{name} = {value}\n" for name, value in values.items()))
        self.checks = 0
        self.wrong_fix = ""
        """The name of a setting for which the patch is wrong."""
        self.shown = len(NAMES)
        """How many findings a check lists."""
        self.said: list[str] = []

    def check(self) -> Checked:
        self.checks += 1
        text = self.file.read_text()
        if "broken" in text:
            return Checked(2, "error: broken", None)
        groups = []
        for line in text.splitlines():
            name, value = line.split(" = ")
            if value != "1":
                new = "broken" if name == self.wrong_fix else "1"
                groups.append(group(self.file, name, line, f"{name} = {new}"))
        return Checked(int(bool(groups)), "", report(groups[: self.shown]))

    def repaired(self) -> Checked:
        return Repair(self.check, self.said.append).run()


def test_all_patches_of_a_report_go_in_together(tmp_path: Path) -> None:
    program = Program(tmp_path, alpha="2", beta="1", gamma="3")
    assert program.repaired().is_match
    assert program.file.read_text() == "alpha = 1\nbeta = 1\ngamma = 1\n"
    assert program.checks == 2


def test_a_patch_that_makes_it_worse_is_taken_back_and_the_others_stay(tmp_path: Path) -> None:
    program = Program(tmp_path, alpha="2", beta="2", gamma="2")
    program.wrong_fix = "beta"
    last = program.repaired()
    assert [each["title"] for each in last.groups] == ["beta"]
    assert program.file.read_text() == "alpha = 1\nbeta = 2\ngamma = 1\n"
    assert any("did not help: the file is restored" in line for line in program.said)


def test_a_right_patch_that_uncovers_another_finding_stays(tmp_path: Path) -> None:
    """A report lists a few findings, and the first two of them hide the third."""
    program = Program(tmp_path, alpha="2", beta="2", gamma="2")
    program.shown = 2
    program.wrong_fix = "beta"
    program.repaired()
    assert program.file.read_text() == "alpha = 1\nbeta = 2\ngamma = 1\n"


def test_a_patch_that_breaks_what_comes_before_it_is_taken_back(tmp_path: Path) -> None:
    program = Program(tmp_path, alpha="1", beta="2", gamma="1")

    def check() -> Checked:
        found = program.check()
        if found.is_match:  # the patch of the second setting was wrong for the first
            before = group(program.file, "alpha", "alpha = 1", "alpha = 1")
            return Checked(1, "", report([before | {"patch": None}]))
        return found

    Repair(check, program.said.append).run()
    assert program.file.read_text() == "alpha = 1\nbeta = 2\ngamma = 1\n"


@pytest.mark.parametrize(("before", "after", "stays"), [(0.25, 0.25, True), (0.25, 0.5, False), (0.0, 0.25, False)])
def test_a_patch_may_uncover_what_differed_before_it(
    tmp_path: Path, before: float, after: float, *, stays: bool
) -> None:
    """The second setting hides the first, which is then found where it always was."""
    program = Program(tmp_path, alpha="2", beta="2", gamma="1")

    def check() -> Checked:
        groups = program.check().groups
        shown = [each for each in groups if each["title"] == "beta"] or [{**each, "patch": None} for each in groups]
        return Checked(1, "", report(shown, errors={"alpha": before if len(groups) > 1 else after}))

    Repair(check, program.said.append).run()
    assert program.file.read_text() == f"alpha = 2\nbeta = {1 if stays else 2}\ngamma = 1\n"


@pytest.mark.parametrize("cause", ["operation added", "operation applied twice"])
@pytest.mark.parametrize("alpha", ["1", "2"])
def test_an_operation_is_taken_away_only_where_all_before_it_agrees(tmp_path: Path, cause: str, alpha: str) -> None:
    """What is one too many in a place may be what another place lacks, for which no cause is known."""
    program = Program(tmp_path, alpha=alpha, beta="2", gamma="2")

    def check() -> Checked:
        found = program.check()
        groups = [
            {**each, "cause": cause if each["title"] == "beta" else each["title"]}
            for each in found.groups
            if each["title"] != "alpha"
        ]
        unknown = [{**each, "cause": "", "patch": None} for each in found.groups if each["title"] == "alpha"]
        return Checked(found.status, "", report([*unknown, *groups]))

    last = Repair(check, program.said.append).run()
    kept = "2" if alpha == "2" else "1"
    assert program.file.read_text() == f"alpha = {alpha}\nbeta = {kept}\ngamma = 1\n"
    assert last.is_match == (alpha == "1")


def test_it_ends_where_nothing_applies(tmp_path: Path) -> None:
    program = Program(tmp_path, alpha="2")
    program.wrong_fix = "alpha"
    program.repaired()
    assert program.file.read_text() == "alpha = 2\n"
    assert program.checks == 2


def test_it_ends_after_so_many_rounds(tmp_path: Path) -> None:
    """Each check finds something new, and the patches never end."""
    program = Program(tmp_path, alpha="0")
    count = 0

    def check() -> Checked:
        nonlocal count
        count += 1
        text = program.file.read_text().strip()
        new = group(program.file, "alpha", text, f"alpha = {count}") | {"cause": f"cause {count}"}
        return Checked(1, "", report([new], step=count))

    Repair(check, program.said.append).run()
    assert count == 1 + ROUNDS


def test_a_finding_that_is_still_there_was_not_mended(tmp_path: Path) -> None:
    program = Program(tmp_path, alpha="2")

    def check() -> Checked:
        line = program.file.read_text().strip()
        found = group(program.file, "alpha", line, "alpha = 5")
        return Checked(1, "", report([found]))

    Repair(check, program.said.append).run()
    assert program.file.read_text() == "alpha = 2\n"


def test_what_was_not_checked_does_not_stay(tmp_path: Path) -> None:
    program = Program(tmp_path, alpha="2")
    checks: list[Callable[[], Checked]] = [program.check]

    def check() -> Checked:
        if not checks:
            raise KeyboardInterrupt
        return checks.pop()()

    with pytest.raises(KeyboardInterrupt):
        Repair(check, program.said.append).run()
    assert program.file.read_text() == "alpha = 2\n"


PORT = """\
import compare
import numpy as np
import torch
from flax import nnx


class Original(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.norms = torch.nn.Linear(3, 4), torch.nn.ModuleList(torch.nn.LayerNorm(4) for _ in range(3))

    def forward(self, x):
        x = self.fc(x)
        for norm in self.norms:
            x = torch.nn.functional.gelu(norm(x))
        return x


class Port(nnx.Module):
    def __init__(self, rngs):
        self.fc = nnx.Linear(3, 4, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(4, rngs=rngs) for _ in range(3)])

    def __call__(self, x):
        x = self.fc(x)
        for norm in self.norms:
            x = nnx.gelu(norm(x))
        return x


def pair():
    batches = [(np.random.default_rng(0).normal(size=(5, 3)), None)]
    return compare.Torch(Original()), compare.Flax(Port(nnx.Rngs(0))), batches
"""


def test_a_port_is_mended_by_the_command_alone(tmp_path: Path) -> None:
    """Three layers that one line makes are one change."""
    file = tmp_path / "port.py"
    file.write_text(PORT)
    arguments = ["check", "port.py:pair", "--fix", "--device", "cpu", "--quiet", "--json", "out.json"]
    command = [sys.executable, "-P", "-m", "netparity", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    expected = PORT.replace("LayerNorm(4, rngs=rngs)", "LayerNorm(4, epsilon=1e-05, rngs=rngs)")
    assert file.read_text() == expected.replace("nnx.gelu(norm(x))", "nnx.gelu(norm(x), approximate=False)")
    assert "✓ port.py:pair: match" in done.stdout
    assert "mended: LayerNorm epsilon, " in done.stdout
    assert json.loads((tmp_path / "out.json").read_text())["reports"][0]["verdict"] == "match"


def test_what_is_left_has_its_reason(tmp_path: Path) -> None:
    program = Program(tmp_path, alpha="2")
    program.wrong_fix = "alpha"
    repair = Repair(program.check, program.said.append)
    tried = repair.run()
    without = [
        {"title": "beta", "patch": None, "fix": "beta = 1", "unpatched": "which call it changes is not known"},
        {"title": "gamma", "patch": None, "fix": "", "unpatched": "no fix is known"},
    ]
    last = Checked(1, "", report([*map(dict, tried.groups), *without]))
    assert repair.left(last) == [
        "alpha: its patch did not help",
        "beta: apply its fix by hand: which call it changes is not known",
        "gamma: no fix is known",
    ]
    assert repair.left(Checked(0, "", report([]))) == []


def test_what_a_patch_leaves_without_a_use_is_listed(tmp_path: Path) -> None:
    program = Program(tmp_path, alpha="2")
    text = "from math import pi, tau\n\n\ndef helper(x):\n    return x * tau\n\n\n"
    text += "width = 3\nalpha = helper(pi)\nbeta = width\n"
    program.file.write_text(text)

    def check() -> Checked:
        now = program.file.read_text()
        return Checked(
            0, "", report([group(program.file, "alpha", "helper(pi)", "2 * pi")] if "helper(pi)" in now else [])
        )

    repair = Repair(check, program.said.append)
    assert repair.unused() == []
    assert repair.run().is_match
    assert repair.unused() == ["helper (port.py:4)"]  # `tau` is read in it, and `width` is still read
