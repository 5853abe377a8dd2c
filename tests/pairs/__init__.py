"""Programs that are written twice, for PyTorch and for JAX: what `compare.check` is tried on."""
