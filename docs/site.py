"""Turn the README into the first page of the documentation site, and links that leave docs/ into links that work there.

mkdocs calls these functions: `hooks` in mkdocs.yml.
"""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def on_files(files: Any, config: Any) -> Any:
    """Add the README as index.md: its links into docs/ become links between pages."""
    from mkdocs.structure.files import File

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=text.replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Link to the README's page, and name files of the repository without a link."""
    markdown = markdown.replace("](../README.md", "](index.md")
    return re.sub(r"\[([^\]]*)\]\(\.\./[^)]*\)", r"`\1`", markdown)
