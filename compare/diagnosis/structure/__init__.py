"""Structural causes: edits of the graph of torch's operations between two places.

A step is recorded as a graph (`recording`, `graph`), open where a difference comes from (`step`). Edits of it are
listed (`listing`; one module for each kind), tried on the recorded tensors, and what fits is confirmed by a run of the
whole step and at other steps (`search`).
"""
