"""The `netparity` command, which does what `python -m compare` does."""

from netparity import installed


def main() -> None:
    """Run the command line and exit. The user's folder is searched for modules only once `compare` is imported."""
    installed("compare.__main__").run()
