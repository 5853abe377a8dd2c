"""What is measured: speed, cost, and how often the comparison is right."""
