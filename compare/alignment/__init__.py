"""Pairs the tensors of both sides that are compared."""
