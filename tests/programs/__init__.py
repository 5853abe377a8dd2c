"""Training steps in PyTorch and their ports, each with the faults that a port of it may have.

A program is a function `pair(fault)` that gives the two `build` functions and the batches; without a fault both are
the same training. `FAULTS` has, for each program, its faults and where the first difference must be named.
"""
