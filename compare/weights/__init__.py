"""Maps the tensors of one side to those of the other."""
