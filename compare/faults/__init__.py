"""Faults planted in a port that matches, to measure which of them a check would notice."""
