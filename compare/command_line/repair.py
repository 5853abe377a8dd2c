"""`netparity check --fix`: applies the patches of a report, checks again, and repeats this until no patch is left.

Each check runs in a process of its own, so that the user's code is imported as it now stands. A patch stays only if the
next check shows that its finding is gone and that nothing else has come in its place.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compare.command_line.files import opened
from compare.diagnosis.structure.edit import Kind
from compare.mending.leftover import unused_after
from compare.mending.patch import diff
from compare.mending.syntax import Edit, Unfit, before_and_after, read

ROUNDS = 5
"""Checks, at most, after the first."""


@dataclass(frozen=True)
class Checked:
    """What one check of the user's files has come to."""

    status: int
    text: str
    """What it printed."""
    report: Mapping[str, Any] | None
    """The report as JSON has it; None where nothing could be compared."""
    folder: Path | None = None
    """Where its files are."""

    @property
    def is_match(self) -> bool:
        """Whether nothing is left to mend."""
        return self.report is not None and self.report["verdict"] == "match"

    @property
    def groups(self) -> list[Mapping[str, Any]]:
        """The findings."""
        return [] if self.report is None else list(self.report["groups"])

    @property
    def divergences(self) -> list[Mapping[str, Any]]:
        """All places that differ, the first one first."""
        first = self.report and self.report["divergence"]
        return [first, *self.report["others"]] if self.report and first else []


Check = Callable[[], Checked]

Say = Callable[[str], None]


class Repair:
    """Mends the user's files round by round.

    Args:
        check: Checks the files as they are.
        say: Prints a line.

    """

    def __init__(self, check: Check, say: Say) -> None:
        self.check, self.say = check, say
        self.rejected: set[str] = set()
        """Patches that did not help, by what they are."""
        self.one_by_one = False
        self.kept: list[str] = []
        """The titles of what was mended."""
        self.before: dict[str, str] = {}
        """The files that were changed, as they were first."""

    def run(self) -> Checked:
        """Go on until there is a match, or nothing that applies; give the last check of the files as they then are."""
        now = self.check()
        for number in range(1, ROUNDS + 1):
            chosen = self._chosen(now)
            if now.is_match or not chosen:
                break
            now = self._round(number, now, chosen)
        return now

    def left(self, last: Checked) -> list[str]:
        """Say of each finding that is left why it was not mended."""
        if last.is_match or last.report is None:
            return []
        return [f"{group['title']}: {self._reason(group)}" for group in last.groups]

    def unused(self) -> list[str]:
        """List what the patches have left without a use, such as a helper or an import."""
        return [
            f"{name} ({Path(file).name}:{line})"
            for file, text in self.before.items()
            for name, line in unused_after(text, read(file))
        ]

    def _reason(self, group: Mapping[str, Any]) -> str:
        if group["patch"] is not None:
            return (
                "its patch did not help"
                if _key(group) in self.rejected
                else f"{ROUNDS} rounds were too few; run the command again"
            )
        return f"apply its fix by hand: {group['unpatched']}" if group["fix"] else str(group["unpatched"])

    def _chosen(self, now: Checked) -> list[Mapping[str, Any]]:
        """List the findings whose patches are to be applied together; two that change one expression are not."""
        chosen: list[Mapping[str, Any]] = []
        for group in now.groups:
            if group["patch"] is None or _key(group) in self.rejected:
                continue
            try:
                _texts([*chosen, group])
            except Unfit:
                continue
            chosen.append(group)
        return chosen[:1] if self.one_by_one else chosen

    def _round(self, number: int, before: Checked, chosen: Sequence[Mapping[str, Any]]) -> Checked:
        titles = ", ".join(str(group["title"]) for group in chosen)
        self.say(f"round {number}: {titles}\n\n{diff(_edits(chosen))}")
        texts = _texts(chosen)
        original = {file: Path(file).read_bytes() for file in texts}
        try:
            for file, text in texts.items():
                Path(file).write_bytes(text.encode())
            after = self.check()
            helped = _helped(before, after, chosen)
        except BaseException:  # Ctrl-C too: what was not checked does not stay
            _restore(original)
            raise
        if helped:
            self.kept += [str(group["title"]) for group in chosen]
            self.say(f"round {number}: {_said(after)}\n")
            self.before = {file: content.decode() for file, content in original.items()} | self.before
            return after
        _restore(original)
        self.say(f"round {number}: {_said(after)}. This did not help: the file is restored\n")
        if len(chosen) == 1:
            self.rejected.add(_key(chosen[0]))
        self.one_by_one = True
        return before


def _helped(before: Checked, after: Checked, mended: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether what was to be mended is gone, and all that is new comes after it or differed already.

    A report lists a few findings at most, and not what they hide. So a right patch may uncover as many as it mends.
    It may also uncover a difference before its place that did not reach the loss: an average over tokens hides their
    order.
    """
    if after.report is None:
        return False
    if after.is_match:
        return True
    if any(_cause(one) == _cause(other) and _places(one) & _places(other) for one in mended for other in after.groups):
        return False
    gone = frozenset[tuple[str, str]]().union(*map(_places, mended))
    if any(_takes_away(one) and _differs_up_to(one, before, after) for one in mended):
        return False
    known = frozenset[tuple[str, str]]().union(*(_places(group) for group in before.groups if group not in mended))
    first = min((_position(each) for each in before.divergences if _place(each) in gone), default=(0, 0))
    return all(
        _place(each) in known or _position(each) > first or _differed_as_much(each, before, after)
        for each in after.divergences
    )


def _differed_as_much(divergence: Mapping[str, Any], before: Checked, after: Checked) -> bool:
    """Return whether a tensor differed by as much before a patch: then the patch is not what makes it differ."""
    now = _compared(divergence, after)
    return now > 0 and math.isclose(now, _compared(divergence, before), rel_tol=1e-6)


def _compared(divergence: Mapping[str, Any], checked: Checked) -> float:
    """Return the float64 difference of the tensor that shows a divergence, in a report of the same pair."""
    step, number = _position(divergence)
    quantities = checked.report["quantities"] if checked.report else []
    errors = quantities[number]["error64"] if number < len(quantities) else []
    return float(errors[step] or 0) if step < len(errors) else 0.0


def _takes_away(group: Mapping[str, Any]) -> bool:
    return _cause(group) in (Kind.ADDED, Kind.TWICE)


def _differs_up_to(mended: Mapping[str, Any], before: Checked, after: Checked) -> bool:
    """Return whether something differs still before the places that a patch was for, or there.

    Such as softmax(dropout(x)) for dropout(softmax(x)): behind the dropout the softmax is one too many, so that a patch
    that takes it away mends this place. It leaves the port without a softmax, since the place before lacks it.
    """
    last = max((_position(each) for each in before.divergences if _place(each) in _places(mended)), default=(0, 0))
    return any(_position(each) <= last for each in after.divergences)


def _cause(group: Mapping[str, Any]) -> str:
    return str(group["cause"])


def _places(group: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    return frozenset(map(_place, group["places"]))


def _place(found: Mapping[str, Any]) -> tuple[str, str]:
    return found["torch"], found["jax"]


def _position(divergence: Mapping[str, Any]) -> tuple[int, int]:
    return divergence["step"], divergence["number"]


def _key(group: Mapping[str, Any]) -> str:
    """Say what a patch is, wherever the file's other lines have moved it."""
    changed = [line for line in group["patch"]["diff"].splitlines() if line[:1] in "+-" and line[:3] not in _HEADS]
    return "\n".join(changed)


_HEADS = ("+++", "---")


def _edits(groups: Sequence[Mapping[str, Any]]) -> list[Edit]:
    return list(dict.fromkeys(Edit(**edit) for group in groups for edit in group["patch"]["edits"]))


def _texts(groups: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the files with the patches of some findings; Unfit where two of them change the same."""
    return {file: after for file, _, after in before_and_after(_edits(groups))}


def _restore(original: Mapping[str, bytes]) -> None:
    for file, content in original.items():
        Path(file).write_bytes(content)


def _said(checked: Checked) -> str:
    if checked.report is not None:
        return str(checked.report["headline"])
    last = checked.text.strip().splitlines()[-1:]
    return last[0] if last else f"the check ended with status {checked.status}"


def repaired(options: argparse.Namespace) -> int:
    """Run `netparity check --fix`, and return the exit status of the last check."""
    asked: dict[str, Path] = {kind: path for kind in options.outputs if (path := getattr(options, kind))}
    with tempfile.TemporaryDirectory(prefix="netparity-") as folder:
        check = in_a_process(_arguments(options), {kind: path.suffix for kind, path in asked.items()}, Path(folder))
        try:
            repair = Repair(check, lambda line: print(line, flush=True))
            last = repair.run()
        except KeyboardInterrupt:
            print("stopped; changes that were not checked are undone", file=sys.stderr)
            return INTERRUPTED
        print(last.text, end="")
        if repair.kept:
            print(f"\nmended: {', '.join(repair.kept)}")
        if unused := repair.unused():
            print(f"no longer used: {', '.join(unused)}")
        if left := repair.left(last):
            print("\nnot mended by --fix:", *left, sep="\n  ")
        for kind, path in asked.items():
            if last.folder is not None and (found := last.folder / f"{kind}{path.suffix}").is_file():
                with opened(path) as partial:
                    partial.write_bytes(found.read_bytes())
        return last.status


INTERRUPTED = 130


def _arguments(options: argparse.Namespace) -> list[str]:
    """Return the options of the command again, without --fix and without the files that it writes."""
    given = [options.pair, "--device", options.device, "--seed", str(options.seed)]
    if options.steps is not None:
        given += ["--steps", str(options.steps)]
    if options.stages is not None:
        given += ["--stages", options.stages]
    given += [part for each in options.accept for part in ("--accept", each)]
    return [*given, *(f"--{name}" for name in ("quiet", "power", "verbose", "quick") if getattr(options, name))]


def in_a_process(arguments: Sequence[str], outputs: Mapping[str, str], folder: Path) -> Check:
    """Return what runs `netparity check` with some arguments in a process of its own.

    Args:
        arguments: Of the command, without --fix and without the files that it writes.
        outputs: The suffixes of the files that it is to write, by kind.
        folder: Where it writes them, each check in a folder of its own.

    """

    def check() -> Checked:
        own = Path(tempfile.mkdtemp(dir=folder))
        files = {kind: own / f"{kind}{suffix}" for kind, suffix in {"json": ".json", **outputs}.items()}
        asked = [part for kind, path in files.items() for part in (f"--{kind.replace('_', '-')}", str(path))]
        # -P: do not look for this package in the user's folder.
        command = [sys.executable, "-P", "-m", "netparity", "check", *arguments, *asked]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, encoding="utf-8")
        report = None
        if files["json"].is_file() and run.returncode in (0, 1):
            report = json.loads(files["json"].read_text(encoding="utf-8"))["reports"][0]
        return Checked(run.returncode, run.stdout, report, own)

    return check
