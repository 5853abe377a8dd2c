"""Measures the difference of both sides, and decides whether rounding explains it."""
