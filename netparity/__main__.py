"""`python -m netparity`: the same as the `netparity` command."""

from netparity.command import main

main()
