"""Ports that are wrong in one to four places, as files that `netparity check --fix` is to mend."""
