"""Why two sides differ: what the JAX side does otherwise is done on the torch side, and the difference goes."""
