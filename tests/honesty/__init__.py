"""Ports that are dishonest, broken or vacuous, each with an honest twin: see `corpus.CORPUS`."""
