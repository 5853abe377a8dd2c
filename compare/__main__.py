"""The command line: `python -m compare`."""

import sys

from compare.command_line import main

sys.exit(main())
