"""What is held against what: pairs of tensors that both sides show."""
