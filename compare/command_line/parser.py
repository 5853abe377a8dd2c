"""The arguments of the commands."""

import argparse
import importlib.metadata
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from compare.command_line import commands
from compare.command_line.completion import SHELLS
from compare.command_line.files import OF_CELLS, OF_CHECK, OF_REPORTS, Output
from compare.device import DEVICES
from compare.notebook.comparison import VARIANTS


class Options(Protocol):
    """What options are added to: a parser, or a group of its options."""

    def add_argument(self, *names: str, **settings: Any) -> Any:
        """Add an option."""

    def set_defaults(self, **values: Any) -> None:
        """Set values that no option has; a group sets them for its parser."""


_EXAMPLES = """
examples:
  netparity check my_port.py:pair                       compare, and explain what differs
  netparity check my_port.py:pair --fix                 fix the port until it matches
  netparity check my_port.py:pair --patch fix.diff      write the fixes as a diff
  netparity check my_port.py:pair --stages forward      compare the forward pass only
  netparity check my_port.py:pair --html report.html    write the report as an HTML page
  netparity check my_port.py:pair --json -              print the whole report as JSON
  netparity check my_port.py:pair --power               plant faults and see which are caught
"""

_WHAT = (
    "Check whether a JAX/Flax port computes what its PyTorch original does. If it does not, name the first place that "
    "differs, the cause and the fix. Without a command, compare the notebook's five programs."
)

_FIRST_EXAMPLES = """
examples:
  netparity check my_port.py:pair        compare a port of your own with its original
  netparity check my_port.py:pair --fix  fix the port until it matches
  netparity check --help                 all options, with further examples
"""

_EPILOG = (
    "Exit status: 0 if there is no mismatch, 1 for a mismatch, 2 for bad usage or if nothing can be compared, 3 for "
    "an error in netparity itself, 130 after Ctrl-C. Documentation: docs/."
)


def parser_of_all() -> argparse.ArgumentParser:
    """Return the parser of the whole command."""
    # One statement an option: longer than other functions, since it is a table that is read from top to
    # bottom.
    parser = argparse.ArgumentParser(
        prog="netparity",
        usage="netparity [COMMAND] ...",
        description=textwrap.fill(_WHAT, 80),
        epilog=f"{_FIRST_EXAMPLES}\n{textwrap.fill(_EPILOG, 80)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,  # so that the commands come before the options
    )
    others = parser.add_subparsers(title="commands", metavar="COMMAND", prog="netparity")
    own = others.add_parser(
        "check",
        help="compare a PyTorch program of your own with its port",
        description="Compare a PyTorch program of your own with its JAX port.",
        epilog=f"{_EXAMPLES}\n{textwrap.fill(_EPILOG, 80)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _shared(own)
    _seeded(own)
    own.add_argument(
        "pair",
        metavar="package.module:function",
        help="or file.py:function; the function returns the arguments of compare.check, as a tuple or as a dict",
    )
    own.add_argument(
        "--steps",
        type=_whole,
        help="training steps (default: what the function returns, else as many as the batches, optimizer and "
        "schedule need)",
    )
    own.add_argument(
        "--quick",
        action="store_true",
        help="do not check whether the sides also match from other weights and on other batches",
    )
    own.add_argument("--fix", action="store_true", help="apply the fixes to the port's files, and check again")
    own.add_argument("--stages", metavar="STAGES", help="compare only these stages, such as forward or forward,loss")
    own.add_argument(
        "--accept",
        action="append",
        default=[],
        metavar="WHAT=REASON",
        help='accept a difference, such as "buffers: *.running_var=we keep those of Flax"; repeatable',
    )
    own.add_argument(
        "--verbose", action="store_true", help="show everything that was compared, and what ran, also for a match"
    )
    own.add_argument("--power", action="store_true", help="plant faults, and say which of them the check catches")
    _gives(own, commands.check, OF_CHECK)
    forward = others.add_parser(
        "shapes",
        help="run both models forward, layer by layer, up to the first shape that differs",
        description="Run both models forward, layer by layer, up to the first shape that differs. No weights "
        "are mapped.",
        epilog=_EPILOG,
    )
    _shared(forward)
    _seeded(forward)
    forward.add_argument("pair", metavar="file.py:function", help="as for netparity check")
    _gives(forward, commands.shapes, {}, commands.show_shapes)
    notebook = others.add_parser(
        "notebook",
        help="compare the notebook's five programs with their ports, which is also done without a command",
        description="Compare the notebook's five PyTorch programs with their JAX ports.",
        epilog=_EPILOG,
    )
    _of_notebook(notebook)
    completion = others.add_parser("completion", help="print a completion script for a shell")
    completion.add_argument("shell", choices=SHELLS)
    completion.set_defaults(completes=parser)
    published = others.add_parser(
        "published",
        help="rank the losses that the notebook's author printed among reproduced ones",
        description="Rank the losses that the notebook's author printed among those of many seeds.",
        epilog=_EPILOG,
    )
    _shared(published)
    published.add_argument("--seeds", type=_whole, default=256, help="number of seeds, at least 2 (256)")
    _gives(published, commands.published, OF_CELLS)
    general = parser.add_argument_group("options")
    general.add_argument("-h", "--help", action="help", help="show this help message and exit")
    version = f"netparity {importlib.metadata.version('netparity')}"
    general.add_argument("--version", action="version", version=version, help="show the version and exit")
    group = parser.add_argument_group("options without a command, as of netparity notebook")
    _of_notebook(group)
    parser.set_defaults(command=commands.notebook, outputs=OF_REPORTS, show=None)
    return parser


def _shared(parser: Options) -> None:
    parser.add_argument("--device", choices=DEVICES, default="auto", help="auto uses a GPU if both frameworks see one")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def _seeded(parser: Options) -> None:
    parser.add_argument("--seed", type=_whole, default=0, help="seed of the data and the weights (0)")


def _of_notebook(parser: Options) -> None:
    """Add the options of the comparison of the notebook's programs."""
    parser.add_argument(
        "--variant", action="append", choices=VARIANTS, help="which program to compare; repeatable (default: all five)"
    )
    parser.add_argument("--steps", type=_whole, default=100, help="training steps (100)")
    parser.add_argument("--learning-rate", type=float, help="learning rate of both sides, instead of the notebook's")
    _shared(parser)
    _seeded(parser)
    _gives(parser, commands.notebook, OF_REPORTS)


def _gives(
    parser: Options,
    command: Callable[..., None],
    outputs: Mapping[str, Output],
    show: Callable[..., None] | None = None,
) -> None:
    """Make the parser one of a command with such outputs, and with what prints its results."""
    for kind, output in outputs.items():
        parser.add_argument(
            f"--{kind.replace('_', '-')}", type=_file(output.suffixes), metavar="FILE", help=output.help
        )
    parser.set_defaults(command=command, outputs=outputs, show=show)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}") from None


def _file(suffixes: tuple[str, ...]) -> Callable[[str], Path]:
    """Check a file's suffix, where that says what it becomes."""

    def path(text: str) -> Path:
        if suffixes and Path(text).suffix not in suffixes:
            *others, last = suffixes
            raise argparse.ArgumentTypeError(f"must end in {', '.join(others)} or {last}, and {text!r} does not")
        return Path(text)

    return path
