"""Ways in which ports go wrong, each as a small pair, right and wrong: `python benchmarks/traps`."""
