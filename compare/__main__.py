"""The command line: `python -m compare`, and the `netparity` command."""

import gc
import os
import sys


def run() -> None:
    """Run the command line with the arguments of the process, and end the process with its status."""
    # The frameworks bring millions of long-lived objects, which Python would look through again and again for garbage,
    # and would take apart one by one at the end: a fifth of the whole time of a short run. The command line turns the
    # search for garbage on again when they are there.
    gc.set_threshold(100_000, 20, 100)
    gc.disable()
    try:
        from compare.command_line.main import main

        status: object = main()
    except SystemExit as stop:
        status = stop.code
    except KeyboardInterrupt:
        status = 130
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 0 if status is None else 3)


if __name__ == "__main__":
    run()
