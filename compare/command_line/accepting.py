"""Reads accepted differences from options and from `[tool.netparity]` of pyproject.toml; the pair may give more."""

import tomllib
from collections.abc import Iterable
from pathlib import Path

from compare.errors import InputError


def accepted(folder: Path, options: Iterable[str]) -> dict[str, str]:
    """Return what the project and the options accept: reasons by what may differ.

    Args:
        folder: The folder in which the search for pyproject.toml starts; its parents follow.
        options: As in "buffers: *.running_var=we keep Flax's".

    """
    return {**of_project(folder), **dict(map(entry, options))}


def of_project(folder: Path) -> dict[str, str]:
    """Read `accept` of `[tool.netparity]`: a table of reasons."""
    folder = folder.resolve()
    file = next((path for each in (folder, *folder.parents) if (path := each / "pyproject.toml").is_file()), None)
    if file is None:
        return {}
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {}).get("netparity", {}).get("accept", {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise InputError(
            f"{file}: accept of [tool.netparity] must be a table of differences and their reasons, not {found!r:.60}"
        )
    return found


def entry(text: str) -> tuple[str, str]:
    """Split what may differ from the reason."""
    what, equal, reason = text.partition("=")
    if not equal or not what.strip() or not reason.strip():
        raise InputError(f'accept takes "stage: name=reason", such as "buffers: *.running_var=...", not {text!r}')
    return what.strip(), reason.strip()
