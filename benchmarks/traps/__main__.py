"""Every trap, right and wrong, through `compare.check` and through what people use today.

    python -m benchmarks.traps [--only NAME] [--fixes] [--processes N] [--json FILE] [--docs FILE] [--readme FILE]

Caught: the wrong half is no match. Placed: the report first shows it where it is. Explained: with its cause and its
fix. `--fixes` puts each printed fix that is code into the wrong half, which must then match.
"""

import argparse
import json
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.parts import spread

from .examine import CATALOGUE, STAGES, TODAY, Examined, Outcome, examined
from .trap import Trap


def documented(traps: list[Trap], outcomes: dict[str, Outcome]) -> str:
    """Write the page of traps."""
    lines = [
        "# Traps",
        "",
        "Common mistakes in PyTorch-to-JAX ports, by stage. Search for your symptom. Each trap has a right and a wrong",
        "pair in `benchmarks/traps/`, and `make traps` runs `compare.check` on both. `python -m benchmarks.traps",
        "--docs docs/traps.md` writes this page.",
    ]
    for stage in STAGES:
        lines += ["", f"## {stage.capitalize()}"]
        for trap in (trap for trap in traps if trap.stage == stage):
            said = outcomes[trap.name]
            lines += ["", f"### {trap.name}", "", f"- torch: {trap.torch}", f"- JAX: {trap.jax}"]
            headline = re.search(
                r"^✗.*?(?=\n  |\n\n|\n\d+ (?:things|findings)|\Z)", said.said, re.DOTALL | re.MULTILINE
            )
            shown = " ".join(headline[0].split()) if headline else ""
            shows = {"error": "refused, with the culprit's name", "precision": "a `precision` verdict"}
            where = f"{trap.place[0]}, {trap.place[1]}" if not shown else shown.removeprefix("✗ port: ")
            lines.append(f"- Shows: {shows.get(trap.verdict, where)}")
            if said.fix:
                lines.append(f"- Fix, as the report prints it: {said.fix}")
            lines.append(f"- Source: <{trap.source}>")
    return "\n".join(lines) + "\n"


def in_readme(text: str, found: dict[str, Examined]) -> str:
    """Put the figures into the table of the README."""
    ours, traps = [each.ours for each in found.values()], len(found)
    caught, placed, explained, alarms = (
        sum(getattr(each, what) for each in ours) for what in ("caught", "placed", "explained", "false_alarm")
    )
    lines = [
        f"| criterion | caught, of {traps} | placed | explained | false alarms |",
        "|---|---|---|---|---|",
        f"| `compare.check` | {caught} | {placed} | {explained} | {alarms} |",
    ]
    for name in TODAY:
        wrong, right = (sum(each.others[name][i] for each in found.values()) for i in (0, 1))
        call, _, of = name.rpartition(", ")
        lines.append(f"| `{call}`, {of} | {wrong} | | | {right} |")
    before, rest = text.split(README_START)
    return before + README_START + "\n\n" + "\n".join(lines) + "\n\n" + README_END + rest.split(README_END)[1]


README_START, README_END = "<!-- traps: the figures that `make traps` prints -->", "<!-- /traps -->"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.traps", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="those with this in their name")
    parser.add_argument("--fixes", action="store_true", help="put each printed fix into the wrong half")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--docs", type=Path, help="the page to write")
    parser.add_argument("--readme", type=Path, help="the README whose table is to be written")
    arguments = parser.parse_args()
    console = Console()
    traps = [trap for trap in CATALOGUE if arguments.only in trap.name]
    asked = [(trap.name, arguments.fixes) for trap in traps]
    done = track(spread(examined, asked, arguments.processes), total=len(traps), console=Console(stderr=True))
    by_name = dict(done)
    found = {trap.name: by_name[trap.name] for trap in traps}
    tabulate(console, traps, found)
    if arguments.json:
        shown = {name: {**each._asdict(), "ours": each.ours._asdict()} for name, each in found.items()}
        arguments.json.write_text(json.dumps(shown, indent=1))
    if arguments.docs:
        arguments.docs.write_text(documented(traps, {name: each.ours for name, each in found.items()}))
    if arguments.readme:
        arguments.readme.write_text(in_readme(arguments.readme.read_text(), found))
    missed = any(not each.ours.caught or each.ours.false_alarm for each in found.values())
    return int(missed or any(each.mended is False for each in found.values()))


def tabulate(console: Console, traps: list[Trap], found: dict[str, Examined]) -> None:
    """Print the figures by stage, those of what people use, and what is wanting."""
    table = Table(box=None, pad_edge=False)
    for heading in ("stage", "traps", "caught", "placed", "explained", "false alarms"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for stage in [*STAGES, "all"]:
        of = [found[trap.name].ours for trap in traps if stage in (trap.stage, "all")]
        sums = (sum(getattr(each, what) for each in of) for what in ("caught", "placed", "explained", "false_alarm"))
        if of:
            table.add_row(stage, str(len(of)), *map(str, sums), end_section=stage == STAGES[-1])
    console.print(table)
    console.print()
    beside = Table(box=None, pad_edge=False)
    for heading in ("what people use", "caught", "false alarms"):
        beside.add_column(heading, justify="left" if heading == "what people use" else "right")
    for name in TODAY:
        wrong, right = (sum(each.others[name][i] for each in found.values()) for i in (0, 1))
        beside.add_row(name, str(wrong), str(right))
    console.print(beside)
    for name, each in found.items():
        wanting = [what for what in ("caught", "placed", "explained") if not getattr(each.ours, what)]
        if wanting or each.ours.false_alarm:
            alarm = " (false alarm)" if each.ours.false_alarm else ""
            console.print(f"{name}: not {wanting[0] if wanting else 'right'}{alarm}", style="dim")
    seconds = [sum(each.ours.seconds[i] for each in found.values()) for i in (0, 1)]
    console.print(
        f"right halves: {seconds[0]:.0f} s; wrong halves, each with a search for its cause: {seconds[1]:.0f} s"
    )
    tried = {name: each.mended for name, each in found.items() if each.mended is not None}
    if tried:
        console.print(f"printed fixes put in: {sum(tried.values())} of {len(tried)} then match")
        console.print(", ".join(name for name, right in tried.items() if not right), style="dim")


if __name__ == "__main__":
    sys.exit(main())
