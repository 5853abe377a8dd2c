"""Explains why two sides differ: with the JAX side's change on the torch side, the difference disappears."""
