"""Causes of structure: edits of the little graph of torch's operations between two places.

A step is recorded as a graph (`recording`, `graph`). Edits of the part that a difference can come from are listed
(`removal`, `operands`, `exchanges`, `arrangement`, `masks`), tried on the recorded tensors, and what fits is confirmed
by a run of the whole step (`search`).
"""
