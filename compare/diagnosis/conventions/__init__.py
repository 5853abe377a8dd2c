"""The conventions in which PyTorch and JAX, Flax and optax differ, as tables: each row is a cause that can be tried."""
