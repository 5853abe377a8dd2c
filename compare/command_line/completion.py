"""Scripts with which a shell completes the command: its subcommands, their options, and files."""

import argparse
from collections.abc import Mapping

SHELLS = ("bash", "zsh", "fish")

_BASH = """\
_netparity() {{
  local words="{words}"
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _netparity netparity
"""


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the script for a shell, to be read by it: `source <(netparity completion bash)`."""
    commands = {name: _options(each) for name, each in _commands(parser).items()}
    own = [*_options(parser), *commands]
    if shell == "fish":
        lines = [f"complete -c netparity -n __fish_use_subcommand -a {name}" for name in commands]
        lines += [f"complete -c netparity -n __fish_use_subcommand -l {word[2:]}" for word in _options(parser)]
        for name, words in commands.items():
            condition = f"'__fish_seen_subcommand_from {name}'"
            lines += [f"complete -c netparity -n {condition} -l {word[2:]}" for word in words]
        return "\n".join(lines) + "\n"
    cases = "\n".join(f'    {name}) words="{" ".join(words)}" ;;' for name, words in commands.items())
    bash = _BASH.format(words=" ".join(own), cases=cases)
    # zsh can read the same script with bashcompinit.
    return f"autoload -U +X bashcompinit && bashcompinit\n{bash}" if shell == "zsh" else bash


def _commands(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    found = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return found[0] if found else {}


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [word for action in parser._actions for word in action.option_strings if word.startswith("--")]
